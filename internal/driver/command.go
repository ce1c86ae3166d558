package driver

import "time"

// Command is a command to run in a container, beside its first process.
type Command struct {
	Args       []string      // the program, as a path or to be found in its PATH, and its arguments
	Env        []string      // NAME=value, in addition to that of the container and in place of what has the same name there
	User       string        // user[:group]; empty for that of the container
	WorkingDir string        // in the container; empty for that of the container
	Timeout    time.Duration // after which it is killed; 0 for 20 s, at most an hour
}

// Output is what came of a Command.
type Output struct {
	Stdout, Stderr []byte // the first MiB of each
	Truncated      bool   // it wrote more than that
	Code           int    // exit status; meaningless if Signal is set
	Signal         int    // the signal that killed it, or 0
	TimedOut       bool   // it was killed because its time was up
}
