package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// sighting is a state that a poller saw first, and when it had it.
type sighting struct {
	state string
	at    time.Time
}

// poller lists the containers all the time, as Kraken does once a second, and notes when a name changed its state.
type poller struct {
	mu   sync.Mutex
	seen []sighting
}

// poll starts a poller of the container name; it ends with the test.
func poll(t *testing.T, c *harness.Client, name string) *poller {
	t.Helper()
	p := &poller{}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		for ctx.Err() == nil {
			a, err := c.Do(ctx, http.MethodGet, "/container", nil)
			if err != nil {
				continue // the end of the test
			}
			var list []models.Container
			decode(t, a.Body, &list)
			state := "none"
			for _, o := range list {
				if string(o.Name) == name {
					state = string(o.State)
				}
			}
			p.note(state)
		}
	})
	t.Cleanup(func() { cancel(); group.Wait() })
	return p
}

func (p *poller) note(state string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.seen) == 0 || p.seen[len(p.seen)-1].state != state {
		p.seen = append(p.seen, sighting{state, time.Now()})
	}
}

// waits returns when state was seen first after since.
func (p *poller) waits(t *testing.T, state string, since time.Time) time.Time {
	t.Helper()
	var at time.Time
	testkit.Eventually(t, "a list shows "+state, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, s := range p.seen {
			if s.state == state && !s.at.Before(since) {
				at = s.at
				return true
			}
		}
		return false
	})
	return at
}

// krakenSlack is how long the list may be ahead of an answer. Kraken takes wrong turns from four seconds on; an
// answer that is on its way is ahead or behind by milliseconds.
const krakenSlack = time.Second

// Kraken's module sends four requests over http, by name, and depends on their order in time.
func TestKraken(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--stop-timeout", "2s")
	c := n.TCP(t)
	p := poll(t, n.TCP(t), "kraken-1.img_A")
	for round := range 3 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			begin := time.Now()
			def := n.simple("kraken-1.img_A", stubborn)
			def.State = models.ContainerStateRunning
			var made models.Container
			c.Must(t, http.StatusCreated, http.MethodPost, "/container", def, &made)
			answered := time.Now()
			if shown := p.waits(t, "running", begin); answered.Sub(shown) > krakenSlack {
				t.Errorf("the list showed it running %v before the answer to POST", answered.Sub(shown))
			}
			// PATCH and DELETE come with a JSON content type and an empty body.
			begin = time.Now()
			var stopped models.Container
			c.Must(t, http.StatusOK, http.MethodPatch, "/container?name=kraken-1.img_A&state=exited", "", &stopped)
			answered = time.Now()
			if stopped.State != models.ContainerStateStopping {
				t.Errorf("PATCH to exited of what ignores SIGTERM answers %s", stopped.State)
			}
			if shown := p.waits(t, "exited", begin); shown.Before(answered) {
				t.Errorf("the list showed it exited %v before the answer to PATCH", answered.Sub(shown))
			}
			c.Must(t, http.StatusOK, http.MethodDelete, "/container?name=kraken-1.img_A", "", nil)
			for _, o := range n.list(t, "/container") {
				t.Errorf("still listed after the answer to DELETE: %+v", o)
			}
		})
	}
	t.Run("dies", func(t *testing.T) {
		def := n.simple("kraken-1.img_A", "/bin/false")
		def.State = models.ContainerStateRunning
		begin := time.Now()
		c.Must(t, http.StatusCreated, http.MethodPost, "/container", def, nil)
		p.waits(t, "dead", begin)
		c.Must(t, http.StatusConflict, http.MethodPost, "/container", def, nil) // the name is taken
		c.Must(t, http.StatusOK, http.MethodDelete, "/container?name=kraken-1.img_A", "", nil)
		def.Command = to(forever)
		c.Must(t, http.StatusCreated, http.MethodPost, "/container", def, nil)
		c.Must(t, http.StatusOK, http.MethodDelete, "/container?name=kraken-1.img_A&force=true", "", nil)
	})
}

// A list answers while a create waits for a device: here the file system below a loop device is frozen.
func TestListDoesNotWait(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	testkit.Need(t, "fsfreeze", "mount")
	n := newNode(t)
	inner := testkit.Ext4(t, testkit.Busybox(t))
	outer := n.mount(t, device(loopback(testkit.Ext4(t, t.TempDir())), "ext4"))
	testkit.Run(t, "cp", "--sparse=always", inner, outer.Mountpoint+"/inner")
	loop := n.attach(t, loopbackIn(mountID(outer.ID), "/inner"))
	testkit.Run(t, "fsfreeze", "-f", outer.Mountpoint)
	thaw := sync.OnceFunc(func() { _ = exec.Command("fsfreeze", "-u", outer.Mountpoint).Run() })
	defer thaw()

	answered := make(chan harness.Answer, 1)
	go func() {
		a, err := n.Do(context.Background(), http.MethodPost, "/mount", device(attachID(loop.ID), "ext4"))
		if err != nil {
			t.Error(err)
		}
		answered <- a
	}()
	testkit.Eventually(t, "the mount shows as pending", func() bool {
		for _, m := range n.list(t, "/mount") {
			if m.Phase == "pending" {
				return true
			}
		}
		return len(answered) > 0
	})
	for range 20 {
		n.list(t, "/mount")
		n.list(t, "/attach")
		n.list(t, "/container")
		n.get(t, "/mount", int64(outer.ID))
	}
	select {
	case a := <-answered:
		t.Skipf("the kernel did not wait for the frozen file system: %d %s", a.Status, a.Body)
	default:
	}
	thaw()
	if a := <-answered; a.Status != http.StatusCreated {
		t.Errorf("after the thaw: %d %s", a.Status, a.Body)
	}
}
