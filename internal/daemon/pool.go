package daemon

import "sync"

// pool holds a limited number of connections that cannot send requests, or cannot yet. A new connection evicts the oldest one of the
// client with the most, so that no client can keep others out by holding connections.
type pool struct {
	most int

	mu     sync.Mutex // protects what follows
	count  int
	number uint64
	of     map[string][]pooled // by client, the oldest first
}

type pooled struct {
	*clientConn
	number uint64 // the smaller the older
}

func newPool(most int) *pool { return &pool{most: most, of: map[string][]pooled{}} }

// add adds a connection, and returns the evicted one, or nil.
func (p *pool) add(v *clientConn) (evicted *clientConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.number++
	p.of[v.client.Key] = append(p.of[v.client.Key], pooled{v, p.number})
	if p.count++; p.count <= p.most {
		return nil
	}
	var first []pooled
	for _, all := range p.of {
		if len(all) > len(first) || len(all) == len(first) && all[0].number < first[0].number {
			first = all
		}
	}
	p.drop(first[0].client.Key, 0)
	return first[0].clientConn
}

// remove removes a connection, unless it was evicted.
func (p *pool) remove(v *clientConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, other := range p.of[v.client.Key] {
		if other.clientConn == v {
			p.drop(v.client.Key, i)
			return
		}
	}
}

func (p *pool) drop(key string, i int) {
	all := p.of[key]
	p.of[key] = append(all[:i:i], all[i+1:]...)
	if p.count--; len(p.of[key]) == 0 {
		delete(p.of, key)
	}
}
