package state

import (
	"time"

	"golang.org/x/sys/unix"
)

// tick is a time of CLOCK_BOOTTIME in nanoseconds. Unlike the wall clock, it cannot be set. It means the same to the next
// daemon, since a journal is of one boot.
type tick int64

// now returns the present tick.
func now() tick {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // fails only for clocks that do not exist
	return tick(t.Nano())
}

// in returns the tick after a duration.
func (t tick) in(d time.Duration) tick { return t + tick(d) }

// until returns the time until t, which was set to be at most longest away.
func (t tick) until(longest time.Duration) time.Duration {
	return min(max(time.Duration(t-now()), 0), longest)
}
