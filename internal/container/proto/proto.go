// Package proto holds the messages between the daemon, a container's supervisor and its init stage.
//
// All go over sockets of type SOCK_SEQPACKET, one message a packet:
//
//	daemon                      supervisor                    init stage
//	  |                             |                             |
//	  |-- spawn, descriptors ------>|                             |
//	  |-- Run (Config) ------------>|                             |
//	  |                             |-- clone3, descriptors ----->|
//	  |                             |-- Run (Config) ------------>|
//	  |                             |                             | namespaces, mounts, root
//	  |                             |<----- Console, descriptors -|  only with Config.Systemd
//	  |                             |<--------------------- Ready |
//	  |                             |                             | execve
//	  |                             |<-- end of file: it is done -|  the command runs
//	  |<-- Started (pid) -----------|
//	  |<-- Up ----------------------|  when it says so itself; only with Config.Systemd
//	  |                             |
//	  |-- StopTimeout ------------->|  the timeout of a Stop that follows, in place of the one in Config
//	  |-- Stop -------------------->|  its stop signal, and SIGKILL to all after the timeout
//	  |                             |  the first process ends, the rest is killed, the log is complete
//	  |<-- Exited (Exit) -----------|
//	  |<-- end of file -------------|
//
// A supervisor that has got its Config goes on if the daemon is gone. A later one connects to the supervisor's socket, is told
// what has been, and takes the place of the first:
//
//	later daemon                supervisor
//	  |-- connect ----------------->|  when the one before is gone
//	  |<-- Greeting (Hello) --------|
//	  |<-- Run (Config) ------------|  as it was started with
//	  |                             |  all else is as above, and Started comes now if it had not yet
//
// If the start fails, the init stage sends Failed (Failure) instead of Ready or after it, the supervisor passes it on
// instead of Started and ends. End of file without Ready means that the init stage died; end of file towards the
// daemon without Exited or Failed, that the supervisor did; unless the file Config.ExitName tells how the container ended, which is
// written before Exited is sent, when nothing of the container is left, and holds the same message.
//
// Daemon and supervisor may be of different versions: an upgrade replaces the one and not the other. Between these two, and in that
// file, what a message or a field means never changes. A message may get further fields, after those that it has, a list of
// key=value further keys (which are no lists), and there may be further kinds: whoever does not know them passes over them. A
// supervisor is not asked for what Hello.Version says it does not know. Descriptors, but for
// SupervisorLogs, and the init stage's messages may change: both ends of these are one version.
//
// A message is its kind, one byte, and its fields, each ended by a NUL: what goes to execve can't hold one.
package proto

import (
	"errors"
	"strconv"
	"strings"
	"syscall"
)

// Kind is the first byte of a message.
type Kind byte

// The kinds of messages.
const (
	Run         Kind = 'R' // with a Config
	Console     Kind = 'C' // with the descriptors of its terminal (master, slave) and of the socket of sd_notify(3)
	Ready       Kind = 'Y' // the init stage is about to execute the command
	Started     Kind = 'S' // with the process id of the command and when it was started, in nanoseconds since 1970
	Failed      Kind = 'F' // with a Failure
	Up          Kind = 'U' // the first process says that the container is ready
	Stop        Kind = 'T' // ask the first process to end
	StopTimeout Kind = 'W' // with how long, in nanoseconds, it may take after Stop until all is killed, instead of Config.StopTimeout
	Launch      Kind = 'X' // start a program in mode ModeExec, with its descriptors in order
	Exited      Kind = 'E' // with an Exit
	Losing      Kind = 'L' // the log can't be written, and output begins to be lost: with the reason

	Greeting Kind = 'H' // with a Hello
)

// MaxSize is how long a message may be, in bytes. The kernel's default send buffer takes one of this size.
const MaxSize = 160 << 10

// MaxCommand is how long a command may be, in bytes: it and the rest of a Config fit into MaxSize. The kernel takes no
// longer argument than this either (MAX_ARG_STRLEN, execve(2)).
const MaxCommand = 128 << 10

// Descriptors that a supervisor is started with; 0, 1 and 2 are /dev/null. Config.Trees says how many binds there are.
const (
	SupervisorProgram = 3 // this program, to be executed as init stage
	SupervisorControl = 4 // the socket to the daemon
	SupervisorRoot    = 5 // the container's root: a detached tree of mounts
	SupervisorCgroup  = 6 // the directory of the container's cgroup
	SupervisorLogs    = 7 // the directory of Config.LogName
	SupervisorSocket  = 8 // the socket that later daemons connect to, listening
	SupervisorBinds   = 9 // the first bind: a detached tree of mounts
)

// Descriptors that an init stage is started with; 0 is /dev/null, 1 and 2 are the pipe to the log.
const (
	InitProgram = 3
	InitStatus  = 4 // the socket to the supervisor
	InitRoot    = 5
	InitBinds   = 6 // the first bind
)

// ModeSupervisor and ModeInit are what argument 1 of imageapi-init says it shall be.
const (
	ModeSupervisor = "supervise"
	ModeInit       = "init"
)

// Mountpoint is where a container's root is attached in its copy of the nursery's mounts, before it becomes the root.
const Mountpoint = "/root"

// SystemdStop is the signal by which systemd is asked to halt: SIGRTMIN+3 of glibc, see systemd(1).
const SystemdStop = 37

// NotifySocket is where a first process that is given Config.Systemd can say that it is ready (sd_notify(3)).
const NotifySocket = "/run/host/notify"

// Reason says of what sort a Failure is.
type Reason string

// The reasons.
const (
	Syscall        Reason = "system call"        // Act on Path failed with Errno
	MissingDirs    Reason = "missing dirs"       // the image can't be written and lacks the directories in Path, separated by spaces
	NotDirectory   Reason = "not a directory"    // the mountpoint Path of the image is something else, or a link
	NotFound       Reason = "not found"          // there is no file Path
	NotInPath      Reason = "not in path"        // no file Path in the directories Detail
	IsDirectory    Reason = "directory"          // Path is a directory
	NotRegular     Reason = "not regular"        // Path is a device, a pipe or a socket
	NotExecutable  Reason = "not executable"     // Path has no permission to be executed
	NoInterpreter  Reason = "no interpreter"     // Path needs the interpreter Detail, which is missing
	BadInterpreter Reason = "bad interpreter"    // Path needs the interpreter Detail, which can't be executed
	WrongMachine   Reason = "wrong architecture" // Path is for the machine Detail, an ELF number (elf(5), e_machine)
	BadFormat      Reason = "bad format"         // Path is neither a program nor a script with #!
	Unfit          Reason = "unfit"              // Act on Path, as Field asks for, can't be done in this container: Errno says why, or Detail, or both
	Died           Reason = "died"               // the init stage ended: Detail says how
)

// ActExecute is the Act of a Failure to execute the command.
const ActExecute = "execute"

// Failure tells why a command could not be started.
type Failure struct {
	Reason Reason
	Act    string // verb and noun, such as "mount proc"
	Path   string
	Detail string
	Errno  syscall.Errno
	Field  string // of the definition, that is to blame, such as "binds[0].target"; or empty
}

// Error returns a terse text, for those who debug; the daemon makes sentences of its own.
func (f *Failure) Error() string {
	return string(f.Reason) + ": " + f.Act + " " + f.Path + " " + f.Detail + ": " + f.Errno.Error()
}

// Message encodes f. Long texts are cut.
func (f *Failure) Message() []byte {
	return Encode(Failed, string(f.Reason), cut(f.Act), cut(f.Path), cut(f.Detail), strconv.Itoa(int(f.Errno)), f.Field)
}

// ParseFailure decodes the fields of a Failed message.
func ParseFailure(fields []string) (*Failure, error) {
	if len(fields) < 6 {
		return nil, errMalformed
	}
	errno, err := strconv.ParseUint(fields[4], 10, 16)
	if err != nil {
		return nil, errMalformed
	}
	return &Failure{Reason: Reason(fields[0]), Act: fields[1], Path: fields[2], Detail: fields[3], Errno: syscall.Errno(errno), Field: fields[5]}, nil
}

// Encode makes a message. The fields hold no NUL.
func Encode(kind Kind, fields ...string) []byte {
	size := 1
	for _, f := range fields {
		size += len(f) + 1
	}
	b := append(make([]byte, 0, size), byte(kind))
	for _, f := range fields {
		b = append(append(b, f...), 0)
	}
	return b
}

// Decode is the opposite of Encode.
func Decode(b []byte) (Kind, []string, error) {
	if len(b) == 0 || len(b) > 1 && b[len(b)-1] != 0 {
		return 0, nil, errMalformed
	}
	if len(b) == 1 {
		return Kind(b[0]), nil, nil
	}
	return Kind(b[0]), strings.Split(string(b[1:len(b)-1]), "\x00"), nil
}

var errMalformed = errors.New("malformed message")

// cut keeps a text as short as the longest path is.
func cut(s string) string {
	const longest = 4096
	return s[:min(len(s), longest)]
}
