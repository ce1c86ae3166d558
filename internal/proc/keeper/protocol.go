// Package keeper starts processes that own something which must outlive the daemon, and finds them again.
//
// A keeper is to a device as a supervisor is to a container. It is started with a listening socket whose file stands in a directory of the
// run directory, so that a later daemon finds it; package companion is its side.
//
//	daemon                          keeper
//	  |-- start, descriptors -------->|
//	  |-- Run (of its role) --------->|
//	  |<-- Hello (version), pidfd ----|
//	  |<-- Ready | Failed ------------|  Failed: it ends
//	  |<-- Status --------------------|  whenever that changes; the last one counts
//	  |-- messages of its role ------>|
//	  |-- Stop ---------------------->|
//	  |<-- end of file ---------------|  the exit record is written
//
// The fields of Run, Ready, Failed and Status belong to the role. A keeper survives its daemon. A later daemon connects to the socket and
// gets what the first one got, as it stands now:
//
//	later daemon                    keeper
//	  |-- connect ------------------->|  the daemon before is gone
//	  |<-- Hello (version), pidfd ----|
//	  |<-- Ready ---------------------|  when it is, if it was not yet
//	  |<-- Status --------------------|  if there is one
package keeper

import "github.com/kraken-hpc/imageapi/internal/proc/wire"

// The kinds of messages that every role has; a role's own are lower-case letters.
const (
	Run    wire.Kind = 'R' // the configuration
	Hello  wire.Kind = 'H' // the protocol version, with a pidfd of the keeper
	Ready  wire.Kind = 'Y' // the keeper does its work; with results of the start
	Failed wire.Kind = 'F' // the start failed, with the reason
	Status wire.Kind = 'S' // the state of its work
	Stop   wire.Kind = 'T' // end
)

// Version is the version of the protocol that this package speaks.
const Version = 1

// Descriptors that a keeper is started with; 0, 1 and 2 are /dev/null.
const (
	ProgramFD = 3 // the program itself
	ControlFD = 4 // the socket to the daemon
	SocketFD  = 5 // the socket that later daemons connect to, listening
	RecordFD  = 6 // the directory of the exit record
	FirstFD   = 7 // the first descriptor of the role
)

// RecordName is the file in which a keeper of some name writes how it ended.
func RecordName(name string) string { return name + ".exit" }

func socketName(name string) string { return name + ".sock" }
