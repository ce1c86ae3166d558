package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// newRaceNode is newNode with a server that has the race detector.
func newRaceNode(t *testing.T, flags ...string) *node {
	t.Helper()
	testkit.Root(t)
	image := testkit.BusyboxImage(t)
	d := harness.Restart(t, harness.RaceServer(t), testkit.RunDir(t), flags...)
	testkit.Unchanged(t, d.Scope(filepath.Dir(image)))
	n := &node{Daemon: d, Client: d.Unix(t), image: image}
	t.Cleanup(func() { n.clear(t) })
	return n
}

// Eight clients create, list, start, stop and delete whatever there is, with references to what others made, for a
// while. No answer is unexpected, and nothing is left.
func TestStress(t *testing.T) {
	n := newRaceNode(t, "--stop-timeout", "300ms")
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(testkit.Rounds(20, 60))*time.Second)
	defer cancel()
	var group sync.WaitGroup
	tallies := make([]map[string]int, 8)
	for i := range tallies {
		seed := rand.Uint64()
		t.Logf("client %d has seed %d", i, seed)
		c := &stressor{node: n, rand: rand.New(rand.NewPCG(seed, uint64(i))), tally: map[string]int{}}
		tallies[i] = c.tally
		group.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				c.step(t)
			}
		})
	}
	group.Wait()
	total := map[string]int{}
	for _, tally := range tallies {
		for what, count := range tally {
			total[what] += count
		}
	}
	t.Logf("%v", total)
	for _, must := range []string{"POST /container 201", "POST /mount 201", "DELETE /container 200", "DELETE /mount 200", "PATCH /container 200"} {
		if total[must] == 0 {
			t.Errorf("%s never happened", must)
		}
	}
}

type stressor struct {
	*node
	rand  *rand.Rand
	tally map[string]int
}

// step sends one request at random.
func (s *stressor) step(t *testing.T) {
	switch s.rand.IntN(10) {
	case 0:
		s.ask(t, http.MethodPost, "/mount", "", squash(s.image), 201, 409) // another one has deleted it
	case 1:
		s.ask(t, http.MethodPost, "/mount", "", overlay(s.anyMount(t)), 201, 404, 409)
	case 2, 3:
		c := &models.Container{Command: to(forever), Mount: overlay(s.anyMount(t)), Name: models.Name(fmt.Sprintf("c%d", s.rand.IntN(6)))}
		if s.rand.IntN(2) == 0 {
			c.State = models.ContainerStateRunning
		}
		s.ask(t, http.MethodPost, "/container", "", c, 201, 404, 409)
	case 4:
		s.ask(t, http.MethodGet, "/container", fmt.Sprintf("?id=%d", s.any(t, "/container")), nil, 200, 404)
	case 5, 6:
		state := []string{"running", "exited", "paused"}[s.rand.IntN(3)]
		s.ask(t, http.MethodPatch, "/container", fmt.Sprintf("?id=%d&state=%s", s.any(t, "/container"), state), nil, 200, 404, 409)
	default:
		resource := []string{"/container", "/container", "/mount", "/attach"}[s.rand.IntN(4)]
		force := s.rand.IntN(2) == 0
		s.ask(t, http.MethodDelete, resource, fmt.Sprintf("?id=%d&force=%v", s.any(t, resource), force), nil, 200, 404, 409)
	}
}

func (s *stressor) ask(t *testing.T, method, resource, query string, body any, expected ...int) {
	a, err := s.Do(context.WithoutCancel(t.Context()), method, resource+query, body)
	if err != nil {
		t.Errorf("%s %s%s: %v", method, resource, query, err)
		return
	}
	s.tally[fmt.Sprintf("%s %s %d", method, resource, a.Status)]++
	if !slices.Contains(expected, a.Status) {
		t.Errorf("%s %s%s: status %d: %s", method, resource, query, a.Status, a.Body)
	}
}

// any returns the id of an object, or of none.
func (s *stressor) any(t *testing.T, resource string) int64 {
	list := s.listWith(context.WithoutCancel(t.Context()), t, resource)
	if len(list) == 0 {
		return 1 << 40
	}
	return list[s.rand.IntN(len(list))].ID
}

// anyMount returns a squashfs that is there, by id, or a new one.
func (s *stressor) anyMount(t *testing.T) *models.Mount {
	for _, m := range s.listWith(context.WithoutCancel(t.Context()), t, "/mount?kind=attach") {
		if s.rand.IntN(3) == 0 {
			return mountID(models.ID(m.ID))
		}
	}
	return squash(s.image)
}
