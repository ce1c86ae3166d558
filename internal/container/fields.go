package container

import (
	"math"
	"reflect"
	"slices"
	"strings"

	"github.com/go-openapi/swag/conv"
	"github.com/go-openapi/swag/jsonutils"
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/models"
)

// field is a field of a definition.
type field struct {
	name string // on the wire

	// check refuses values that cannot work, and fills in the default. It is nil for a field that the specification alone decides.
	check func(u *unit, faults *errs.Faults)

	// run writes it into the configuration of a run. It is nil for a field that only the daemon uses.
	run func(u *unit, config *wire.Config)

	live bool // it can change while the container exists
}

// fields are the fields of a definition besides the mount and the state, in the order of their faults. A field is a row here, a property in
// swagger.yaml and, if a run needs it, a field of wire.Config: there it decides whether commands in the container get it, too.
var fields = []field{
	{name: "name", live: true},
	{name: "command", check: (*unit).checkWords, run: (*unit).runWords},
	{
		name: "args", check: func(u *unit, faults *errs.Faults) { checkArgs(u.Def.Args, faults) },
		run: func(u *unit, config *wire.Config) { config.Args = append(config.Args, u.Def.Args...) },
	},
	{
		name: "systemd", check: func(u *unit, _ *errs.Faults) { u.Def.Systemd = new(conv.Value(u.Def.Systemd)) },
		run: func(u *unit, config *wire.Config) { config.Systemd = *u.Def.Systemd },
	},
	{
		name: "namespaces", check: (*unit).checkNamespaces,
		run: func(u *unit, config *wire.Config) { config.Namespaces = flags(u.Def.Namespaces) },
	},
	{name: "restart", live: true},
	{name: "max_restarts", live: true, check: (*unit).checkRestart},
	{name: "labels", live: true},
	{name: "env", check: func(u *unit, faults *errs.Faults) { checkEnv(u.Def.Env, faults) }, run: (*unit).runEnv},
	{
		name: "working_dir", check: func(u *unit, faults *errs.Faults) { checkPath("working_dir", u.Def.WorkingDir, faults) },
		run: func(u *unit, config *wire.Config) { config.WorkingDir = u.Def.WorkingDir },
	},
	{
		name: "user", check: func(u *unit, faults *errs.Faults) { checkUser(u.Def.User, *u.Def.Systemd, faults) },
		run: func(u *unit, config *wire.Config) { config.User = u.Def.User },
	},
	{name: "hostname", check: (*unit).checkHostname, run: func(u *unit, config *wire.Config) { config.Hostname = u.Def.Hostname }},
	{name: "stop_signal", check: (*unit).checkStopSignal, run: (*unit).runStopSignal},
	{
		name: "stop_timeout", live: true, check: (*unit).checkStopTimeout,
		run: func(u *unit, config *wire.Config) { config.StopTimeout = u.stopTimeout() },
	},
	{
		name: "devices", check: func(u *unit, faults *errs.Faults) { checkDevices(u.Def.Devices, faults) },
		run: func(u *unit, config *wire.Config) {
			config.HostDevices = slices.Equal(u.Def.Devices, []string{hostDevices})
		},
	},
	{name: "binds", check: (*unit).checkBinds, run: (*unit).runBinds},
	{name: "capabilities", check: (*unit).checkCapabilities, run: (*unit).runCapabilities},
	{name: "rlimits", check: (*unit).checkRlimits, run: (*unit).runRlimits},
	{name: "resources", live: true, check: (*unit).checkResources},
}

// places are the indices of the fields of a container, by their names on the wire.
var places = func() map[string]int {
	all := map[string]int{}
	for f := range reflect.TypeFor[models.Container]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		all[name] = f.Index[0]
	}
	return all
}()

// copyTo gives another container this field. They share what it refers to.
func (f field) copyTo(to, from *models.Container) {
	i := places[f.name]
	reflect.ValueOf(to).Elem().Field(i).Set(reflect.ValueOf(from).Elem().Field(i))
}

// plan checks a definition and fills in its defaults.
func (d *Driver) plan(c *models.Container) (*unit, errs.Faults) {
	var given models.Container
	for _, f := range fields {
		f.copyTo(&given, c)
	}
	var faults errs.Faults
	u := &unit{driver: d}
	if err := jsonutils.FromDynamicJSON(given, &u.Def); err != nil { // a deep copy
		faults.Add("", "%v", err)
		return nil, faults
	}
	for _, f := range fields {
		if f.check != nil {
			f.check(u, &faults)
		}
	}
	if len(faults) == 0 {
		u.checkLength(&faults)
	}
	return u, faults
}

// addedLater is how much longer a configuration becomes, at most: by the variables of systemd, the name of the log.
const addedLater = 1 << 10

// checkLength refuses what does not fit into one message to the supervisor.
func (u *unit) checkLength(faults *errs.Faults) {
	n := len(u.config(math.MaxInt64).Message().Encode()) + addedLater
	if n <= wire.MaxSize {
		return
	}
	longest, length := "command", len(*u.Def.Command)
	for field, list := range map[string][]string{"args": u.Def.Args, "env": u.Def.Env} {
		if l := len(strings.Join(list, " ")); l > length {
			longest, length = field, l
		}
	}
	faults.Add(longest, "the definition is too long: %d bytes, more than %d, go to the container: put a part of it into a file of the image", n, wire.MaxSize)
}

// config returns the configuration of a run of the container with an id, without the parts that find adds.
func (u *unit) config(id int64) (config wire.Config) {
	for _, f := range fields {
		if f.run != nil {
			f.run(u, &config)
		}
	}
	if config.Hostname == "" {
		config.Hostname = hostname(string(u.Def.Name), id)
	}
	return config
}

func (u *unit) checkHostname(faults *errs.Faults) {
	if u.Def.Hostname != "" && flags(u.Def.Namespaces)&unix.CLONE_NEWUTS == 0 {
		faults.Add("hostname", "needs the namespace uts: without it the host name is the node's")
	}
}

func (u *unit) checkRestart(faults *errs.Faults) {
	switch most := u.Def.MaxRestarts; {
	case most < 0:
		faults.Add("max_restarts", "is negative: give how often in a row, or 0 for any number")
	case most > 0 && !u.Restart().OnFailure:
		faults.Add("max_restarts", "means nothing without restart: on-failure or always")
	}
}
