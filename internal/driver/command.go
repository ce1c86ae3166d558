package driver

import (
	"io"
	"time"
)

// Command is a command to run in a container, beside its first process.
type Command struct {
	Args       []string      // the program, as a path or to be found in its PATH, and its arguments
	Env        []string      // NAME=value, in addition to that of the container and in place of what has the same name there
	User       string        // user[:group]; empty for that of the container
	WorkingDir string        // in the container; empty for that of the container
	Timeout    time.Duration // after which it is killed; 0 for 20 s, at most an hour, or for any time with Attach
	Input      []byte        // what it reads from standard input; nil for /dev/null

	// Attach is called once, when the command runs, and connects its streams with a client. Without it the output is kept. If ctx of Exec
	// ends, such a command gets SIGHUP and, a few seconds later, SIGKILL.
	Attach      func(Input) (Attached, error)
	Interactive bool // with Attach: standard input comes from there
	TTY         bool // with Attach: it gets a terminal

	// Console is no command: Attach is connected to the console of the container. Nothing else is set then.
	Console bool
}

// Input is what a client sends to a command.
type Input struct {
	Stdin  io.WriteCloser                   // waits while the command does not read; nil without Interactive
	Resize func(rows, columns uint16) error // nil without a terminal
}

// Output is what came of a Command.
type Output struct {
	Stdout, Stderr []byte // the first MiB of each
	Truncated      bool   // it wrote more than that
	Code           int    // exit status; meaningless if Signal is set
	Signal         int    // the signal that killed it, or 0
	TimedOut       bool   // it was killed because its time was up
}

// Attached is where the output of a command goes. A write waits for a client that does not read.
type Attached struct {
	Stdout, Stderr io.Writer
	Cut            func() // ends all writes: the command is over, and nobody may wait for the client any longer
}
