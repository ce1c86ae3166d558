package proto

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config tells how to run a command.
type Config struct {
	Args        []string      // at least one; without a slash the first is looked up in the PATH of Env
	Env         []string      // as in environ(7)
	WorkingDir  string        // in the container; empty for /
	User        string        // user[:group], names of the container or numbers; empty for root
	Hostname    string        // for a uts namespace of its own
	Namespaces  uintptr       // CLONE_NEW* flags of those that are to be separate
	Systemd     bool          // the command is systemd or wants the surroundings that systemd does
	StopSignal  int           // asks the first process to end
	StopTimeout time.Duration // between that and SIGKILL
	Drop        uint64        // the capabilities that it must not have, a bit each
	Rlimits     []Rlimit
	Devices     []Device // in addition to the minimal ones
	HostDevices bool     // instead of all others the node's /dev, whose tree is an inherited descriptor after those of Binds
	Binds       []Bind   // their trees are inherited descriptors
	LogName     string   // of the log's file, in the directory SupervisorLogs
	LogSize     int64    // how much of it is kept at most, in bytes; at least MinLogSize
	ExitName    string   // of the file there that tells how the container ended
	Input       bool     // a descriptor comes with the message, to be standard input or to get a terminal's master
	TTY         bool     // the command gets a terminal
}

// Trees returns how many trees of the node a container inherits as descriptors.
func (c Config) Trees() int {
	if c.HostDevices {
		return len(c.Binds) + 1
	}
	return len(c.Binds)
}

// Rlimit is a limit as for setrlimit(2).
type Rlimit struct {
	Resource   int
	Soft, Hard uint64
}

// Device is a device node to be made.
type Device struct {
	Path   string // below /dev, without that
	Mode   uint32 // st_mode: S_IFCHR or S_IFBLK and the permissions
	Number uint64 // st_rdev
	UID    uint32
	GID    uint32
}

// Bind is a tree of the node that goes into the container.
type Bind struct {
	Target string // an absolute path in the container
	File   bool   // it is no directory
}

// Message encodes c: fields of the form key=value. The value of a list is the number of the fields that follow and are its
// elements, as they stand.
func (c Config) Message() []byte {
	var fields []string
	text := func(key, value string) { fields = append(fields, key+"="+value) }
	number := func(key string, value uint64) { text(key, strconv.FormatUint(value, 10)) }
	list := func(key string, values []string) {
		number(key, uint64(len(values)))
		fields = append(fields, values...)
	}
	list("args", c.Args)
	list("env", c.Env)
	text("cwd", c.WorkingDir)
	text("user", c.User)
	text("hostname", c.Hostname)
	text("log", c.LogName)
	number("logsize", uint64(c.LogSize))
	text("exit", c.ExitName)
	number("namespaces", uint64(c.Namespaces))
	if c.Systemd {
		number("systemd", 1)
	}
	number("signal", uint64(c.StopSignal))
	number("timeout", uint64(c.StopTimeout))
	number("drop", c.Drop)
	for _, r := range c.Rlimits {
		number("resource", uint64(r.Resource))
		number("soft", r.Soft)
		number("hard", r.Hard)
	}
	for _, d := range c.Devices {
		text("device", d.Path)
		number("mode", uint64(d.Mode))
		number("rdev", d.Number)
		number("uid", uint64(d.UID))
		number("gid", uint64(d.GID))
	}
	if c.HostDevices {
		number("host", 1)
	}
	if c.Input {
		number("input", 1)
	}
	if c.TTY {
		number("tty", 1)
	}
	for _, b := range c.Binds {
		text("bind", b.Target)
		if b.File {
			number("file", 1)
		}
	}
	return Encode(Run, fields...)
}

// ParseConfig decodes the fields of a Run message.
func ParseConfig(fields []string) (Config, error) {
	var c Config
	for len(fields) > 0 {
		key, value, ok := strings.Cut(fields[0], "=")
		if !ok {
			return Config{}, errMalformed
		}
		var err error
		if fields, err = c.set(key, value, fields[1:]); err != nil {
			return Config{}, err
		}
	}
	if len(c.Args) == 0 {
		return Config{}, errMalformed
	}
	return c, nil
}

// numbers are the keys whose values are numbers.
var numbers = [...]string{
	"args", "env", "logsize", "namespaces", "systemd", "signal", "timeout", "drop", "resource", "soft", "hard", "mode", "rdev", "uid", "gid", "host", "file",
	"input", "tty",
}

// set takes in one field and returns what is left of those after it.
func (c *Config) set(key, value string, rest []string) ([]string, error) {
	switch key {
	case "cwd":
		c.WorkingDir = value
		return rest, nil
	case "user":
		c.User = value
		return rest, nil
	case "hostname":
		c.Hostname = value
		return rest, nil
	case "log":
		c.LogName = value
		return rest, nil
	case "exit":
		c.ExitName = value
		return rest, nil
	case "device":
		c.Devices = append(c.Devices, Device{Path: value})
		return rest, nil
	case "bind":
		c.Binds = append(c.Binds, Bind{Target: value})
		return rest, nil
	}
	if !slices.Contains(numbers[:], key) {
		return rest, nil // a later version knows it
	}
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return nil, errors.Join(errMalformed, err)
	}
	lists := map[string]*[]string{"args": &c.Args, "env": &c.Env}
	if list := lists[key]; list != nil {
		if n > uint64(len(rest)) {
			return nil, errMalformed
		}
		*list = rest[:n:n]
		return rest[n:], nil
	}
	return rest, c.setNumber(key, n)
}

func (c *Config) setNumber(key string, n uint64) error {
	switch last := len(c.Rlimits) - 1; {
	case key == "namespaces":
		c.Namespaces = uintptr(n)
	case key == "systemd":
		c.Systemd = n == 1
	case key == "signal":
		c.StopSignal = int(n)
	case key == "timeout":
		c.StopTimeout = time.Duration(n)
	case key == "drop":
		c.Drop = n
	case key == "logsize":
		c.LogSize = int64(n)
	case key == "resource":
		c.Rlimits = append(c.Rlimits, Rlimit{Resource: int(n)})
	case key == "soft" && last >= 0:
		c.Rlimits[last].Soft = n
	case key == "hard" && last >= 0:
		c.Rlimits[last].Hard = n
	case key == "input":
		c.Input = n == 1
	case key == "tty":
		c.TTY = n == 1
	case key == "host":
		c.HostDevices = n == 1
	case key == "file" && len(c.Binds) > 0:
		c.Binds[len(c.Binds)-1].File = n == 1
	default:
		return c.setDevice(key, n)
	}
	return nil
}

// setDevice takes in a number of the last device.
func (c *Config) setDevice(key string, n uint64) error {
	if len(c.Devices) == 0 {
		return errMalformed
	}
	d := &c.Devices[len(c.Devices)-1]
	switch key {
	case "mode":
		d.Mode = uint32(n)
	case "rdev":
		d.Number = n
	case "uid":
		d.UID = uint32(n)
	case "gid":
		d.GID = uint32(n)
	default:
		return errMalformed
	}
	return nil
}
