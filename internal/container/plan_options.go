package container

import (
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

// options are what a definition may say beside what every one says. What it does not is empty here, and is not shown.
type options struct {
	More        []string `json:"more_args,omitempty"` // arguments after the words of the command
	Env         []string `json:"env,omitempty"`
	WorkingDir  string   `json:"working_dir,omitempty"`
	User        string   `json:"user,omitempty"`
	Hostname    string   `json:"hostname,omitempty"`
	StopSignal  string   `json:"stop_signal,omitempty"`
	StopTimeout int64    `json:"stop_timeout,omitempty"` // seconds
	Devices     []string `json:"devices,omitempty"`
	Binds       []bind   `json:"binds,omitempty"`
	Drop        []string `json:"drop,omitempty"`
	Add         []string `json:"add,omitempty"`
	Rlimits     []rlimit `json:"rlimits,omitempty"`
}

// planOptions checks them, against each other and u.
func (u *unit) planOptions(c *models.Container, faults *errs.Faults) {
	u.options = options{
		More: slices.Clone(c.Args), Env: slices.Clone(c.Env), WorkingDir: c.WorkingDir, User: c.User, Hostname: c.Hostname,
		StopSignal: c.StopSignal, StopTimeout: c.StopTimeout, Devices: slices.Clone(c.Devices),
	}
	checkArgs(u.More, faults)
	checkEnv(u.Env, faults)
	checkPath("working_dir", u.WorkingDir, faults)
	checkUser(u.User, u.Systemd, faults)
	if u.Hostname != "" && !slices.Contains(u.Namespaces, models.ContainerNamespaceUts) {
		faults.Add("hostname", "needs the namespace uts: without it the host name is the node's")
	}
	checkStop(u.StopSignal, u.StopTimeout, faults)
	checkDevices(u.Devices, faults)
	u.Binds = planBinds(c.Binds, faults)
	if c.Capabilities != nil {
		u.Drop, u.Add = slices.Clone(c.Capabilities.Drop), slices.Clone(c.Capabilities.Add)
		checkCapabilities("capabilities.drop", u.Drop, faults)
		u.checkAdd(faults)
	}
	u.Rlimits = planRlimits(c.Rlimits, faults)
	if len(*faults) == 0 {
		u.checkLength(faults)
	}
}

// addedLater is how much longer a configuration becomes, at most: by the variables of systemd, the name of the log.
const addedLater = 1 << 10

// checkLength refuses what does not fit into one message to the supervisor.
func (u *unit) checkLength(faults *errs.Faults) {
	n := len(u.config(math.MaxInt64, 0).Message()) + addedLater
	if n <= proto.MaxSize {
		return
	}
	longest, length := "command", len(u.Command)
	for field, list := range map[string][]string{"args": u.More, "env": u.Env} {
		if l := len(strings.Join(list, " ")); l > length {
			longest, length = field, l
		}
	}
	faults.Add(longest, "the definition is too long: %d bytes, more than %d, go to the container: put a part of it into a file of the image", n, proto.MaxSize)
}

// config is how the container with an id is run, but for what is to be looked for on the node.
func (u *unit) config(id int64, timeout time.Duration) proto.Config {
	config := proto.Config{
		Args:        slices.Concat(u.Words, u.More),
		Env:         environment(u.Env, u.User != ""),
		WorkingDir:  u.WorkingDir,
		User:        u.User,
		Hostname:    u.Hostname,
		Namespaces:  flags(u.Namespaces),
		Systemd:     u.Systemd,
		StopSignal:  int(unix.SIGTERM),
		StopTimeout: timeout,
		HostDevices: slices.Equal(u.Devices, []string{hostDevices}),
	}
	if u.Systemd {
		config.StopSignal, config.StopTimeout = systemdStopSignal, systemdStopTimeout
	}
	if u.Hostname == "" {
		config.Hostname = hostname(u.ContainerName, id)
	}
	if u.StopSignal != "" {
		config.StopSignal, _ = signalNumber(u.StopSignal)
	}
	if u.StopTimeout != 0 {
		config.StopTimeout = time.Duration(u.StopTimeout) * time.Second
	}
	config.Drop = (u.withheld(config.Namespaces) | bits(u.Drop)) &^ bits(u.Add)
	for _, r := range u.Rlimits {
		config.Rlimits = append(config.Rlimits, r.limit())
	}
	for _, b := range u.Binds {
		config.Binds = append(config.Binds, proto.Bind{Target: b.Target})
	}
	return config
}

// show writes them into a definition.
func (o *options) show(c *models.Container) {
	c.Args, c.Env, c.WorkingDir, c.User, c.Hostname = o.More, o.Env, o.WorkingDir, o.User, o.Hostname
	c.StopSignal, c.StopTimeout, c.Devices = o.StopSignal, o.StopTimeout, o.Devices
	if len(o.Drop)+len(o.Add) > 0 {
		c.Capabilities = &models.ContainerCapabilities{Drop: o.Drop, Add: o.Add}
	}
	for _, b := range o.Binds {
		c.Binds = append(c.Binds, &models.ContainerBind{Source: new(b.Source), Target: new(b.Target), Ro: new(b.ReadOnly)})
	}
	for _, r := range o.Rlimits {
		c.Rlimits = append(c.Rlimits, &models.ContainerRlimit{Type: new(r.Type), Soft: new(r.Soft), Hard: new(r.Hard)})
	}
}
