package crash

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// TestStorm kills the daemon at random moments, time and again, while clients create, change and delete what they like. Each
// knows what it was promised, and looks at it whenever its connection was cut off.
func TestStorm(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(testkit.Rounds(20, 600))*time.Second)
	defer cancel()
	menu := l.menu()
	clients := make([]*client, 4)
	var all sync.WaitGroup
	for i := range clients {
		seed := rand.Uint64()
		t.Logf("client %d has seed %d", i, seed)
		c := &client{T: t, Client: l.Client, number: i, rand: rand.New(rand.NewPCG(seed, 0)), menu: menu, mine: map[int64]promise{}, gone: map[int64]bool{}}
		clients[i] = c
		all.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				c.step()
			}
		})
	}
	kills := l.storm(ctx)
	all.Wait()
	now := l.settled()
	requests, cut := 0, 0
	for _, c := range clients {
		c.compare(now)
		requests, cut = requests+c.requests, cut+c.cut
	}
	l.bystander(now)
	l.clear(l.base)
	l.unchanged(l.quiet)
	t.Logf("%d kills, %d requests, of which %d were cut off, %d leaks", kills, requests, cut, l.tally.leaks)
	if kills == 0 || cut == 0 {
		t.Error("too few requests")
	}
}

// storm kills and starts the daemon until ctx ends; one time in eight it is asked to end.
func (l *lab) storm(ctx context.Context) (kills int) {
	for ctx.Err() == nil && !l.Failed() {
		wait := 100*time.Millisecond + rand.N(1900*time.Millisecond)
		select {
		case <-ctx.Done():
			return kills
		case <-l.ended:
			l.Errorf("the daemon ended by itself: %v; its log:\n%s", l.err, l.said())
			return kills
		case <-time.After(wait):
		}
		if rand.IntN(8) == 0 {
			_ = l.cmd.Process.Signal(unix.SIGTERM)
			<-l.ended
		} else {
			l.kill()
		}
		kills++
		l.restart(rest, 0)
	}
	return kills
}

// dish is a structure that a client may have many of.
type dish struct {
	structure
	body any
}

// menu is what clients choose from: what does not exclude others.
func (l *lab) menu() (all []dish) {
	for _, s := range local() {
		if !slices.Contains([]string{"local", "ext4", "overlay kept", "partitions"}, s.name) {
			all = append(all, dish{s, s.define(l)})
		}
	}
	return all
}

// client is one that knows what it was promised.
type client struct {
	*testing.T
	*harness.Client
	number int
	rand   *rand.Rand
	menu   []dish
	mine   map[int64]promise // what it was told that it has
	gone   map[int64]bool    // what it was told that it has no more

	names, requests, cut int
}

type promise struct {
	path, name string
	states     []string // that a container may be in
}

// ask sends a request. The status is 0 if it was cut off.
func (c *client) ask(method, path string, body any, expected ...int) (status int, o object) {
	c.requests++
	a, err := c.Do(context.Background(), method, path, body)
	if err != nil {
		c.cut++
		return 0, o
	}
	_ = json.Unmarshal(a.Body, &o) // an error has none of this
	if expected = append(expected, http.StatusServiceUnavailable); !slices.Contains(expected, a.Status) {
		c.Errorf("%s %s: status %d: %s", method, path, a.Status, a.Body)
	}
	return a.Status, o
}

// step does something at random. If it is cut off the client waits for the next daemon and holds it to what the last one said.
func (c *client) step() {
	ids := slices.Sorted(maps.Keys(c.mine))
	var status int
	switch choice := c.rand.IntN(10); {
	case len(ids) == 0 || choice < 4 && len(ids) < 6:
		status = c.create()
	case choice < 8:
		status = c.remove(ids[c.rand.IntN(len(ids))])
	default:
		status = c.change(ids[c.rand.IntN(len(ids))])
	}
	if status != 0 {
		return
	}
	testkit.Settles(func() bool {
		now, err := (&server{Client: c.Client}).all()
		if err == nil {
			c.compare(now)
		}
		return err == nil
	})
}

func (c *client) create() int {
	d := c.menu[c.rand.IntN(len(c.menu))]
	p := promise{path: d.path}
	body := d.body
	if d.path == "/container" {
		c.names++
		p.name, p.states = fmt.Sprintf("c%d-%d", c.number, c.names), []string{"running"}
		named := *body.(*models.Container)
		named.Name = models.Name(p.name)
		body = &named
	}
	status, o := c.ask(http.MethodPost, d.path, body, http.StatusCreated, http.StatusConflict)
	if status == http.StatusCreated {
		c.mine[o.ID] = p
	}
	return status
}

func (c *client) remove(id int64) int {
	p := c.mine[id]
	status, _ := c.ask(http.MethodDelete, fmt.Sprintf("%s?id=%d&force=true", p.path, id), nil, http.StatusOK, http.StatusConflict)
	switch status {
	case 0:
		delete(c.mine, id) // it may be either way
	case http.StatusOK:
		delete(c.mine, id)
		c.gone[id] = true
	}
	return status
}

func (c *client) change(id int64) int {
	p := c.mine[id]
	if p.path != "/container" {
		status, _ := c.ask(http.MethodGet, fmt.Sprintf("%s?id=%d", p.path, id), nil, http.StatusOK)
		return status
	}
	state := []string{"running", "exited", "paused"}[c.rand.IntN(3)]
	p.states = append(slices.Clone(p.states), state)
	c.mine[id] = p
	status, _ := c.ask(http.MethodPatch, fmt.Sprintf("%s?id=%d&state=%s", p.path, id, state), nil, http.StatusOK, http.StatusConflict)
	if status == http.StatusOK {
		p.states = []string{state}
		c.mine[id] = p
	}
	return status
}

// compare holds what is there against what was promised.
func (c *client) compare(now objects) {
	for id, p := range c.mine {
		o, ok := now[id]
		switch {
		case !ok:
			c.Errorf("lost: %s %d %s", p.path, id, p.name)
		case o.Phase != "ready" && !o.stopping() || o.Name != p.name || o.Path != p.path:
			c.Errorf("%v was promised as %s %s", o, p.path, p.name)
		case p.states != nil && !o.stopping() && !slices.Contains(p.states, o.State):
			c.Errorf("%v may be %q", o, p.states)
		}
	}
	for id := range c.gone {
		if o, ok := now[id]; ok {
			c.Errorf("deleted, but there: %v", o)
		}
	}
}
