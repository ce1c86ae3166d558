package wire

import "time"

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
	LogName     string   // of the log's file, in the directory RecordFD
	LogSize     int64    // how much of it is kept at most, in bytes; at least MinLogSize
	Input       bool     // a descriptor comes with the message, to be standard input or to get a terminal's master
	TTY         bool     // the command gets a terminal
}

func (c *Config) table(t *Table) {
	t.List("args", &c.Args)
	t.List("env", &c.Env)
	t.Text("cwd", &c.WorkingDir)
	t.Text("user", &c.User)
	t.Text("hostname", &c.Hostname)
	Number(t, "namespaces", &c.Namespaces)
	t.Flag("systemd", &c.Systemd)
	Number(t, "signal", &c.StopSignal)
	Number(t, "timeout", &c.StopTimeout)
	Number(t, "drop", &c.Drop)
	t.Each("rlimit", len(c.Rlimits), func(i int) func(*Table) { return element(&c.Rlimits, i).table })
	t.Each("device", len(c.Devices), func(i int) func(*Table) { return element(&c.Devices, i).table })
	t.Flag("host", &c.HostDevices)
	t.Each("bind", len(c.Binds), func(i int) func(*Table) { return element(&c.Binds, i).table })
	t.Text("log", &c.LogName)
	Number(t, "logsize", &c.LogSize)
	t.Flag("input", &c.Input)
	t.Flag("tty", &c.TTY)
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

func (l *Rlimit) table(t *Table) {
	Number(t, "resource", &l.Resource)
	Number(t, "soft", &l.Soft)
	Number(t, "hard", &l.Hard)
}

// Device is a device node to be made.
type Device struct {
	Path   string // below /dev, without that
	Mode   uint32 // st_mode: S_IFCHR or S_IFBLK and the permissions
	Number uint64 // st_rdev
	UID    uint32
	GID    uint32
}

func (d *Device) table(t *Table) {
	t.Text("path", &d.Path)
	Number(t, "mode", &d.Mode)
	Number(t, "rdev", &d.Number)
	Number(t, "uid", &d.UID)
	Number(t, "gid", &d.GID)
}

// Bind is a tree of the node that goes into the container.
type Bind struct {
	Target string // an absolute path in the container
	File   bool   // it is no directory
}

func (b *Bind) table(t *Table) {
	t.Text("target", &b.Target)
	t.Flag("file", &b.File)
}

// Fields encodes c.
func (c Config) Fields() []string { return Fields(c.table) }

// Message encodes c.
func (c Config) Message() Message { return Message{Kind: Run, Fields: c.Fields()} }

// ParseConfig decodes a Run message.
func ParseConfig(m Message) (c Config, err error) {
	if err = ParseFields(m.Fields, c.table); err == nil && (m.Kind != Run || len(c.Args) == 0) {
		err = ErrMalformed
	}
	return c, err
}

// ReceiveConfig waits for the first message, which must be Run. It may have a descriptor with it; without one input is -1.
func ReceiveConfig(socket int) (c Config, input int, err error) {
	m, err := Receive(socket)
	if err != nil {
		return c, -1, err
	}
	input = -1
	if len(m.Files) == 1 {
		input = m.Files[0]
	}
	c, err = ParseConfig(m)
	return c, input, err
}
