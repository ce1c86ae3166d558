package source

import "time"

// Hurry makes a Source impatient, so that tests end soon.
func (c Config) Hurry() Config {
	c.timing = &timing{
		silence: 300 * time.Millisecond, leastRate: 4 << 10, rateOver: 400 * time.Millisecond,
		firstBackoff: time.Millisecond, lastBackoff: 10 * time.Millisecond, mostRetry: time.Second,
	}
	return c
}

// ContentRange is contentRange.
func ContentRange(text string) (first, last, total int64, ok bool) { return contentRange(text) }
