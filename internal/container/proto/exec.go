package proto

// A command that runs beside the first process of a container is started by a program of its own, in mode ModeExec, which
// then goes on as its parent. The supervisor starts that program, with the descriptors that come with Launch; for a supervisor of version 1
// the daemon does:
//
//	daemon                      exec                          inside
//	  |-- spawn, descriptors ------>|                             |
//	  |-- Run (Config) ------------>|                             |
//	  |                             |-- fork, setns, fork ------->|
//	  |                             |-- Run (Config) ------------>|
//	  |                             |                             | capabilities, user, limits
//	  |                             |<--------------------- Ready |
//	  |                             |                             | execve
//	  |                             |<-- end of file: it is done -|  the command runs
//	  |<-- Started -----------------|
//	  |-- Hangup ------------------>|  SIGHUP to all that it has started
//	  |-- Stop -------------------->|  SIGKILL to all that it has started
//	  |<-- Exited (Exit) -----------|
//	  |-- Release ----------------->|  the daemon has read what it wrote
//	  |<-- end of file -------------|
//
// What the command has left running is then a child of the supervisor, which reads and throws away what that still writes. A program that the daemon
// has started does so itself, and ends when nobody is left who could write.
//
// With Config.Input, Run comes with the descriptor that becomes standard input. With Config.TTY, that descriptor is a socket: the process
// inside makes a terminal, sends Console with its master through the socket, and uses the terminal as its three standard streams.
//
// If it can't be started, Failed (Failure) comes instead of Exited. End of file without either means that the program died.
// Without the daemon the command is killed.

// Release and Hangup are messages without fields.
const (
	Release Kind = 'L'
	Hangup  Kind = 'G'
)

// ModeExec and ModeInside are what argument 1 of imageapi-init says it shall be.
const (
	ModeExec   = "exec"
	ModeInside = "inside"
)

// ExecSupervised is argument 3 of a program in mode ModeExec that the supervisor has started: what the command leaves running is the supervisor's.
const ExecSupervised = "supervised"

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
