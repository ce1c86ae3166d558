package driver

import (
	"errors"
	"io"
	"time"
)

// LogQuery says which part of a log is wanted.
type LogQuery struct {
	Tail   int64     // only so many of the latest lines; negative for all
	Since  time.Time // only what was written then or later, to a tenth of a second; zero for all
	Follow bool      // also what is written after the log was opened

	Timestamps bool // each line begins with the time at which it was written
}

// Log is a log that is being read, by one goroutine.
type Log interface {
	// Read reads on. At the end of what is there it returns io.EOF; with LogQuery.Follow a later call may give more. If what
	// comes next is not kept any more it returns ErrLogGone.
	io.ReadCloser
	// More returns a channel that is received from when there may be more to read, for use until the next Read. It is nil
	// without LogQuery.Follow.
	More() <-chan struct{}
}

// ErrLogGone is why a reader of a log can't go on: too slow for what is written, or the log was removed.
var ErrLogGone = errors.New("the next part of the log was not read in time and is gone")
