// Package state holds the objects, their references and their phases.
//
// # The life of an object
//
//	Create    admit, enter ──▶ pending ──▶ bringUp: Up of each level ──▶ commit ──▶ ready
//	                              │ a level fails                                     │ Delete, or the last holder went
//	                              └──▶ undo ──▶ collect ◀─────────────── stopping ◀───┘
//	                                              │ Down                    ▲ retry
//	                                              ├──▶ gone                 │
//	                                              └──▶ broken: it failed ───┘
//	Inspect   ready ──▶ broken: another program changed it
//
// A container has a [Run] in addition: created, running, paused, stopping, exited or dead (container.go). A restart policy starts it again
// (restart.go).
//
// # How the state changes
//
// Each change is a function that Manager.edit or Manager.try calls under Manager.mu. It touches views; publish then makes a new [Snapshot] and
// the events. Acts on the node happen between two changes, without that lock: guard runs an act, record or note writes the result to the
// journal. Two kinds of locks exist, always taken in this order: the lock of an object, newest object first, so that operations on it take
// turns; then Manager.mu, a leaf that is never held over a system call. Readers take none: they read the last Snapshot. To wait for a
// change, until calls a condition after each one.
//
// Four walks act on levels. bringUp goes upwards and journals each level before the next (create.go, exchange.go). collect goes downwards from
// claimed objects and claims the dependencies that become unused (teardown.go). lower goes downwards through objects that stay (exchange.go).
// Recover goes upwards through the objects of an earlier daemon, and resumes its creations, deletions and replaces (recover.go, restore.go).
//
// # The life of a replace
//
//	mount    bringUp of the new stack, next to the old one; levels that the old one holds are late
//	stop     the old container, by its stop policy
//	start    exchange: the old holders are lowered, the late levels come up; then the new container starts
//	ready    the new container reports its readiness
//	probe    the client's command succeeds
//	commit   one write of the journal moves the name; the old container is collected, or kept
//
// Each step is in the journal before its act, in one record of the old container ([Replace]), so that a later daemon continues there. In the
// step mount a failure only undoes the new stack (abandon). Later it goes back: the new container is killed, giveBack restores lowered levels,
// and the old container starts. A stop or a deletion by a client cancels the replace (stopBoth).
package state
