// Package wire is the form of all messages between the daemon and the processes that it starts, and the only codec of this tree.
//
// Messages go over sockets of type SOCK_SEQPACKET (unix(7)), one a packet. A message is its kind, one byte, and its fields, each ended by
// a NUL: nothing that goes to the kernel as a text holds one. Descriptors travel with a message as SCM_RIGHTS. A Table has the fields of a
// structure. End of file without Ended, Failed or Ready means that the other process died.
//
// A companion, a process that outlives the daemon, is a supervisor of a container or the keeper of a device:
//
//	daemon                          companion
//	  |-- spawn, descriptors -------->|
//	  |-- Run ----------------------->|
//	  |<-- Hello (version), pidfd ----|
//	  |<-- Ready | Failed ------------|  Failed: it ends
//	  |<-- Status --------------------|  whenever that changes; the last one counts
//	  |-- messages of its role ------>|
//	  |-- Stop ---------------------->|
//	  |<-- Ended ---------------------|  after the exit record, a file with this message, was written
//	  |<-- end of file ---------------|
//
// The fields of Run, Ready, Failed, Status and Ended belong to the role. A companion that has received Run continues if the daemon is
// gone. A later daemon connects to its socket, and takes the place of the first:
//
//	later daemon                    companion
//	  |-- connect ------------------->|  when the daemon before is gone
//	  |<-- Hello (version), pidfd ----|
//	  |<-- Ready ---------------------|  when it is, if it was not yet
//	  |<-- Status --------------------|  if there is one
//
// A supervisor receives a Config and is Ready (Started) when the command runs. Its Status is a State. Its own messages are StopTimeout, Launch
// and Attach. To Attach it sends Console with the terminal's master through the socket that came with it, and it then writes to the pipe that
// came with it all that the console shows. Stop sends the stop signal, and SIGKILL to all after the timeout. Ended (Exit) comes when
// nothing of the container is left.
//
//	supervisor                    init stage
//	  |-- clone3, descriptors ------->|
//	  |-- Run (Config) -------------->|
//	  |                               |  namespaces, mounts, root
//	  |<-- Console, descriptors ------|  only with Config.Systemd
//	  |<-- Ready ---------------------|  or Failed (Failure), also after Ready
//	  |                               |  execve
//	  |<-- end of file ---------------|  the command runs
//
// A command next to the first process of a container is started by a program in mode ModeExec, which continues as its parent. The supervisor
// starts that program, with the descriptors that come with Launch:
//
//	daemon                      exec                          inside
//	  |-- Run (Config) ------------>|                             |
//	  |                             |-- fork, setns, fork ------->|
//	  |                             |-- Run (Config) ------------>|
//	  |                             |                             | capabilities, user, limits
//	  |                             |<--------------------- Ready |
//	  |                             |                             | execve
//	  |                             |<-- end of file: it is done -|  the command runs
//	  |<-- Ready -------------------|
//	  |-- Hangup ------------------>|  SIGHUP to all that it has started
//	  |-- Stop -------------------->|  SIGKILL to all that it has started
//	  |<-- Ended (Exit) ------------|
//	  |-- Release ----------------->|  the daemon has read what it wrote
//	  |<-- end of file -------------|
//
// What the command has left running is then a child of the supervisor, which reads and discards its output. With Config.Input, Run has
// the descriptor that becomes standard input. With Config.TTY that descriptor is a socket: the process inside makes a terminal, sends
// Console with its master through the socket, and uses the terminal as its three standard streams. Without the daemon the command is killed.
//
// A helper, a process for one act that may hang:
//
//	daemon                          helper
//	  |-- spawn, descriptors -------->|
//	  |-- DoMount, DoUnmount, ... --->|
//	  |                               | the act: it may hang, and the daemon may kill the process
//	  |<-- Ready (a descriptor) ------|  or Failed (Failure)
//	  |<-- end of file ---------------|
//
// If the daemon's end of the socket is closed, the helper ends, whatever it does.
//
// Daemon and companion may be of different versions: an upgrade replaces the one and not the other. Between these, and in exit records, the
// meaning of a kind, a key or a field never changes. A message may get further fields at its end, a table further keys, and a receiver
// ignores kinds, keys and fields that it does not know. A companion is not asked for anything that is newer than its version. Descriptors
// and the messages of the init stage, of commands and of helpers may change: both ends are one version. RecordFD alone stays.
package wire

// The kinds of messages.
const (
	Run    Kind = 'R' // the configuration
	Hello  Kind = 'H' // the protocol version, with a pidfd of the companion
	Ready  Kind = 'Y' // it does its work; the command runs, or is about to; the act is done
	Failed Kind = 'F' // with the reason
	Status Kind = 'S' // the state of its work
	Stop   Kind = 'T' // end
	Ended  Kind = 'E' // the exit record

	// Of roles.

	Console     Kind = 'c' // with the descriptors of its terminal (master, slave) and of the socket of sd_notify(3)
	StopTimeout Kind = 'w' // the time after Stop until all is killed, instead of Config.StopTimeout
	Launch      Kind = 'x' // start a program in mode ModeExec, with its descriptors in order
	Attach      Kind = 'a' // show the console in a pipe, and send its master through a socket: with the socket and the pipe
	Release     Kind = 'l'
	Hangup      Kind = 'g'
)

// Version is the version of the messages between daemon and companions.
const Version = 1

// MaxCommand is how long a command may be, in bytes: it and the rest of a Config fit into MaxSize. The kernel takes no
// longer argument than this either (MAX_ARG_STRLEN, execve(2)).
const MaxCommand = 128 << 10

// The modes of imageapi-init, its argument 1. Argument 2 is the name of the container, or the subject of a helper's act.
const (
	ModeSupervisor = "supervise"
	ModeInit       = "init"
	ModeExec       = "exec"
	ModeInside     = "inside"
	ModeHelper     = "help"
)

// Mountpoint is where a container's root is attached in its copy of the launch namespace, before it becomes the root.
const Mountpoint = "/root"

// SystemdStop is the signal by which systemd is asked to halt: SIGRTMIN+3 of glibc, see systemd(1).
const SystemdStop = 37

// NotifySocket is where a first process that is given Config.Systemd can say that it is ready (sd_notify(3)).
const NotifySocket = "/run/host/notify"
