// Package slots limits how much of something each client can use at a time.
package slots

import "sync"

// Slots counts what is taken, by client. It is safe for concurrent use.
type Slots struct {
	most int

	mu    sync.Mutex // protects taken
	taken map[string]int
}

// New returns Slots of which each client can have most at a time; 0 for any number.
func New(most int) *Slots { return &Slots{most: most, taken: map[string]int{}} }

// Take takes one for a client, unless none is left. The caller returns it with Give.
func (s *Slots) Take(client string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.most > 0 && s.taken[client] >= s.most {
		return false
	}
	s.taken[client]++
	return true
}

// Give returns one.
func (s *Slots) Give(client string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken[client]--; s.taken[client] <= 0 {
		delete(s.taken, client)
	}
}
