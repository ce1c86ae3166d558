package daemon

import "sync"

// strangers are connections that may send no requests, or not yet. There are places for a few; a new one takes the place of the
// oldest one of the client that has most, so that none can keep the others out by holding connections.
type strangers struct {
	most int

	mu     sync.Mutex // protects what follows
	count  int
	number uint64
	of     map[string][]stranger // by client, the oldest first
}

type stranger struct {
	*clientConn
	number uint64 // the smaller the older
}

func newStrangers(most int) *strangers { return &strangers{most: most, of: map[string][]stranger{}} }

// enter gives v a place, and returns the connection that loses its own for that, or nil.
func (s *strangers) enter(v *clientConn) (loses *clientConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	s.of[v.client.Key] = append(s.of[v.client.Key], stranger{v, s.number})
	if s.count++; s.count <= s.most {
		return nil
	}
	var first []stranger
	for _, all := range s.of {
		if len(all) > len(first) || len(all) == len(first) && all[0].number < first[0].number {
			first = all
		}
	}
	s.remove(first[0].client.Key, 0)
	return first[0].clientConn
}

// leave takes the place away from v, if it still has one.
func (s *strangers) leave(v *clientConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, other := range s.of[v.client.Key] {
		if other.clientConn == v {
			s.remove(v.client.Key, i)
			return
		}
	}
}

func (s *strangers) remove(key string, i int) {
	all := s.of[key]
	s.of[key] = append(all[:i:i], all[i+1:]...)
	if s.count--; len(s.of[key]) == 0 {
		delete(s.of, key)
	}
}
