package wire

// Descriptors that a companion is started with; 0, 1 and 2 are /dev/null.
const (
	ProgramFD = 3 // the program itself
	ControlFD = 4 // the socket to the daemon
	SocketFD  = 5 // the socket that later daemons connect to, listening
	RecordFD  = 6 // the directory of the exit record
	FirstFD   = 7 // the first descriptor of the role
)

// RecordName is the file in which a companion of some name writes its exit record.
func RecordName(name string) string { return name + ".exit" }

// RecordNew is added to that while it is written.
const RecordNew = ".new"

// The descriptors of a supervisor. Config.Trees says how many binds there are.
const (
	SupervisorRoot   = FirstFD     // the container's root: a detached tree of mounts
	SupervisorCgroup = FirstFD + 1 // the directory of the container's cgroup
	SupervisorBinds  = FirstFD + 2 // the first bind: a detached tree of mounts
)

// Descriptors that an init stage is started with; 0 is /dev/null, 1 and 2 are the pipe to the log.
const (
	InitProgram = ProgramFD
	InitStatus  = 4 // the socket to the supervisor
	InitRoot    = 5
	InitBinds   = 6 // the first bind
)

// ExecFiles is how many descriptors come with Launch: those below but the one that is left free.
const ExecFiles = 8

// Descriptors that a program in mode ModeExec is started with; 0, 1 and 2 are /dev/null, and InitStatus is left free for the
// one inside, which starts with InitStatus, standard output and standard error.
const (
	ExecProgram   = 3 // this program, to be executed inside
	ExecControl   = 5 // the socket to the daemon
	ExecFirst     = 6 // a pidfd of the container's first process
	ExecCgroup    = 7 // the directory of the command's cgroup
	ExecOutput    = 8 // the pipe that is to be standard output, for writing
	ExecErrors    = 9 // the pipe that is to be standard error, for writing
	ExecOutputEnd = 10
	ExecErrorsEnd = 11 // the other ends of both
)
