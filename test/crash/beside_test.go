package crash

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// TestBesideTheDaemon stops what the daemon has started, supervisors, init stages, helpers and what brings commands in, before
// each of its system calls that change anything, and kills it, or the daemon, or both, or has the call fail.
func TestBesideTheDaemon(t *testing.T) {
	for _, mode := range []string{strike, behead, both, refuse} {
		t.Run(strings.ReplaceAll(mode, " ", "-"), func(t *testing.T) {
			l := newLab(t)
			l.env = []string{watch + "=1"} // not the bystander
			l.kill()
			l.restart(rest, 0)
			step := stride(89, 1)
			offset := rand.IntN(step)
			for _, s := range structures() {
				if s.path != "/container" && !s.guest {
					continue // the daemon makes it alone
				}
				t.Run(strings.ReplaceAll(s.name, " ", "-"), func(t *testing.T) {
					defer l.within(t)()
					l.through(s, mode, offset, step, false)
				})
			}
			t.Logf("%s at every %d. point from the %d.: %v", mode, step, offset, &l.tally)
		})
	}
}
