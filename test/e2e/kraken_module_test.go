package e2e

import (
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	httptransport "github.com/go-openapi/runtime/client"
	"github.com/go-openapi/strfmt"

	"github.com/kraken-hpc/imageapi/client"
	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// What a kraken thinks of an image.
const (
	fateNone   = ""
	fateActive = "active"
	fateIdle   = "idle"
	fateError  = "error" // it will try again
	fateFatal  = "fatal" // it has given up
)

// What a kraken does with an image until it has succeeded or failed. It ignores an action that is under way already.
const (
	actionNone   = ""
	actionCreate = "create"
	actionReload = "reload"
	actionDelete = "delete"
)

// What an event is about: the state of a container, or the image as a whole, whose container is new or gone.
const (
	eventState = "/Container/State"
	eventImage = ""
)

// gone is what a kraken takes for the state of a container that no list has.
const gone = ""

// kraken keeps images running as Kraken's module does: it lists the containers once a second and does everything else
// when a list shows what it was waiting for. It uses the generated client with nothing set, so that each request has 30 s, takes every
// answer that is no error of the API for a fault of the test, and panics if such an error has no message.
type kraken struct {
	t    *testing.T
	api  *client.Imageapi
	back func(retries int) time.Duration // how long it waits before it tries again
	work sync.WaitGroup
	quit chan struct{}

	mu       sync.Mutex
	idle     bool                         // the images shall be deleted, although they are configured
	cut      bool                         // the server may be down: that a request finds no server is no fault of the test
	asked    map[string]string            // the action that an image needs, as the module notes it
	doing    map[string]string            // the action that is under way
	config   map[string]*models.Container // the images that shall run
	shown    map[string]state             // of the last list
	fates    map[string]string
	tried    map[string]int
	creating map[string]bool
	failures map[string]int   // how often an image has failed, in all
	lasts    map[string]int64 // the code of its last error
	triggers map[string]map[string][]func()
}

// state is that of a container in a list, and when it was there first.
type state struct {
	name  string
	since time.Time
}

const krakenPoll = time.Second

// krakenLost is how late an answer must be for Kraken to take a wrong turn.
const krakenLost = 4 * time.Second

// krakenRetries is how often it tries again before it gives up.
const krakenRetries = 3

// module starts a kraken that ends with the test.
func module(t *testing.T, n *node) *kraken {
	t.Helper()
	plain := &http.Transport{}
	k := &kraken{
		t: t, quit: make(chan struct{}), back: func(retries int) time.Duration { return krakenPoll / 4 << retries },
		api:   client.New(httptransport.NewWithClient(n.Address, client.DefaultBasePath, []string{"http"}, &http.Client{Transport: plain}), strfmt.Default),
		asked: map[string]string{}, doing: map[string]string{},
		config: map[string]*models.Container{}, shown: map[string]state{}, fates: map[string]string{}, tried: map[string]int{},
		creating: map[string]bool{}, failures: map[string]int{}, lasts: map[string]int64{}, triggers: map[string]map[string][]func(){},
	}
	ticker := time.NewTicker(krakenPoll)
	k.work.Go(func() {
		for {
			select {
			case <-ticker.C:
				k.work.Go(k.discover)
			case <-k.quit:
				return
			}
		}
	})
	t.Cleanup(func() {
		ticker.Stop()
		close(k.quit)
		k.work.Wait()
		plain.CloseIdleConnections()
	})
	return k
}

// discover lists the containers and acts on what has changed since the last list.
func (k *kraken) discover() {
	begin := time.Now()
	answer, err := k.api.Containers.ListContainers(containers.NewListContainersParams())
	if took := time.Since(begin); took > krakenLost {
		k.t.Errorf("a list took %v", took)
	}
	if err != nil {
		if !k.mayBeDown() {
			k.t.Errorf("list containers: %v", err)
		}
		return
	}
	now := map[string]string{}
	for _, c := range answer.GetPayload() {
		now[string(c.Name)] = string(c.State)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	names := maps.Clone(k.config)
	for name := range k.shown {
		names[name] = nil
	}
	for name := range names {
		before, known := k.shown[name]
		if known && before.name == now[name] {
			continue
		}
		about := eventState
		if !known || before.name == gone || now[name] == gone {
			about = eventImage
		}
		k.shown[name] = state{now[name], begin}
		k.work.Go(func() { k.changed(name, about, now[name]) })
	}
}

func (k *kraken) mayBeDown() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cut
}

// changed does what was to be done in this state; if nothing was, the change was not expected. With an event about the whole image its
// action may have changed, too.
func (k *kraken) changed(name, about, now string) {
	if about == eventImage {
		k.activate(name)
	}
	k.mu.Lock()
	due := k.triggers[name][now]
	delete(k.triggers[name], now)
	wanted := k.config[name] != nil && (now != gone || k.fates[name] != fateError && k.fates[name] != fateFatal)
	idle := k.idle
	k.mu.Unlock()
	for _, do := range due {
		do()
	}
	switch {
	case len(due) > 0:
	case idle && now != gone: // whatever it is: it has to go
		k.remove(name)
	case idle || !wanted:
	case now == "dead" || now == "exited":
		k.raise(name, 0)
	case now == gone:
		k.create(name)
	}
}

// expect has something done once a list shows a state. A list that is a little ahead of the answer that led to this does
// no harm; where it is far ahead Kraken waits for what has been.
func (k *kraken) expect(name, want string, do func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if at := k.shown[name]; at.name == want && want != gone {
		if late := time.Since(at.since); late > krakenLost {
			k.t.Errorf("%s was shown as %s for %v before the answer that should have come first", name, want, late)
		}
		k.work.Go(do)
		return
	}
	if k.triggers[name] == nil {
		k.triggers[name] = map[string][]func(){}
	}
	k.triggers[name][want] = append(k.triggers[name][want], do)
}

// create does nothing while the same image is being created.
func (k *kraken) create(name string) {
	k.mu.Lock()
	def := k.config[name]
	if def == nil || k.creating[name] {
		k.mu.Unlock()
		return
	}
	k.creating[name] = true
	k.mu.Unlock()
	params := containers.NewCreateContainerParams()
	params.Container = def
	_, err := k.api.Containers.CreateContainer(params)
	k.mu.Lock()
	k.creating[name] = false
	k.mu.Unlock()
	if err != nil {
		k.failed(name, err)
		return
	}
	k.expect(name, "running", func() { k.settle(name, fateActive) })
}

// remove stops and deletes a container, in the steps that its state asks for.
func (k *kraken) remove(name string) {
	k.mu.Lock()
	now := k.shown[name].name
	k.mu.Unlock()
	switch now {
	case gone:
		return
	case "running":
		params := containers.NewSetContainerStateParams()
		params.Name, params.State = &name, "exited"
		if _, err := k.api.Containers.SetContainerState(params); err != nil {
			k.failed(name, err)
			return
		}
		fallthrough
	case "stopping":
		k.expect(name, "exited", func() { k.remove(name) })
		return
	}
	params := containers.NewDeleteContainerParams()
	params.Name = &name
	if _, err := k.api.Containers.DeleteContainer(params); err != nil {
		k.failed(name, err)
	}
}

func (k *kraken) reload(name string) {
	k.mu.Lock()
	now := k.shown[name].name
	k.mu.Unlock()
	if now == gone {
		k.create(name)
		return
	}
	k.expect(name, gone, func() { k.create(name) })
	k.remove(name)
}

// failed reads an error as Kraken does, which knows those that the API declares and reads their message unseen.
func (k *kraken) failed(name string, err error) {
	var payload *models.Error
	switch e := err.(type) { // it does not look for wrapped ones
	case *containers.CreateContainerDefault:
		payload = e.Payload
	case *containers.SetContainerStateDefault:
		payload = e.Payload
	case *containers.DeleteContainerDefault:
		payload = e.Payload
	default:
		if k.mayBeDown() {
			k.raise(name, 0)
		} else {
			k.t.Errorf("%s: not an error of the API: %v", name, err)
		}
		return
	}
	if *payload.Message == "" {
		k.t.Errorf("%s: error %d has no text", name, payload.Code)
	}
	k.raise(name, payload.Code)
}

// raise notes that an image is not what it should be, and tries again after a while.
func (k *kraken) raise(name string, code int64) {
	k.mu.Lock()
	k.lasts[name] = code
	k.failures[name]++
	k.tried[name]++
	tried := k.tried[name]
	wanted := k.config[name] != nil
	k.fates[name] = fateError
	if tried > krakenRetries {
		k.fates[name] = fateFatal
	}
	clear(k.triggers[name])
	delete(k.doing, name)
	delete(k.asked, name) // until it tries again
	k.mu.Unlock()
	if tried > krakenRetries || !wanted {
		return
	}
	k.work.Go(func() {
		select {
		case <-time.After(k.back(tried)):
			k.mu.Lock()
			if k.config[name] != nil {
				k.asked[name] = actionReload
			}
			k.mu.Unlock()
			k.activate(name)
		case <-k.quit:
		}
	})
}

func (k *kraken) settle(name, fate string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fates[name], k.tried[name] = fate, 0
	k.asked[name], k.doing[name] = actionNone, actionNone
}

// activate does what an image needs, unless it is being done.
func (k *kraken) activate(name string) {
	k.mu.Lock()
	action := k.asked[name]
	if k.idle || action == actionNone || action == k.doing[name] {
		k.mu.Unlock()
		return
	}
	k.doing[name] = action
	k.mu.Unlock()
	switch action {
	case actionCreate:
		k.create(name)
	case actionReload:
		k.reload(name)
	case actionDelete:
		k.expect(name, gone, func() { k.settle(name, fateNone) })
		k.remove(name)
	}
}

// rest deletes all images, as the target IDLE asks for.
func (k *kraken) rest() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.idle = true
	clear(k.triggers)
	clear(k.doing)
	for name := range k.config {
		k.work.Go(func() {
			k.expect(name, gone, func() { k.settle(name, fateIdle) })
			k.remove(name)
		})
	}
}

// define changes the configuration of an image; nil removes it.
func (k *kraken) define(name string, def *models.Container) {
	k.mu.Lock()
	before := k.config[name]
	delete(k.config, name)
	if def != nil {
		sent := *def
		sent.Name, sent.State = models.Name(name), models.ContainerStateRunning
		k.config[name] = &sent
	}
	k.fates[name], k.tried[name] = fateNone, 0
	switch {
	case def == nil:
		k.asked[name] = actionDelete
	case before != nil:
		k.asked[name] = actionReload
	default:
		k.asked[name] = actionCreate
	}
	k.mu.Unlock()
	k.work.Go(func() { k.activate(name) })
}

// until waits for what a kraken comes to know; each of its own steps may take a minute.
func (k *kraken) until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	holds := func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return cond()
	}
	for end := time.Now().Add(time.Minute); !holds(); <-time.After(krakenPoll / 20) {
		if time.Now().After(end) {
			t.Fatalf("waited a minute in vain: %s; it thinks %v, and the last errors were %v", what, k.fates, k.lasts)
		}
	}
}

// becomes waits until the kraken thinks so of an image.
func (k *kraken) becomes(t *testing.T, name, fate string) {
	t.Helper()
	k.until(t, name+" becomes "+fate, func() bool { return k.fates[name] == fate })
}

// recovers waits until an image has failed once more than it had, and is active again.
func (k *kraken) recovers(t *testing.T, name string, failed int) {
	t.Helper()
	k.until(t, name+" fails", func() bool { return k.failures[name] > failed })
	k.becomes(t, name, fateActive)
}

// forgets waits until no list has the container of an image.
func (k *kraken) forgets(t *testing.T, name string) {
	t.Helper()
	k.until(t, name+" is gone", func() bool { return k.shown[name].name == gone })
}

// last is how often an image has failed, and the code of its last error.
func (k *kraken) last(name string) (failed int, code int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failures[name], k.lasts[name]
}

// follows are the states that can follow each other in lists that are read without a pause, but for those that are passed in less
// than the time between two.
var follows = map[string][]string{
	"none":    {"created", "running"},
	"created": {"running", "none"},
	"running": {"exited", "dead"},
	"exited":  {"none"},
	"dead":    {"none"},
}

// inOrder holds what a poller has seen against that.
func (p *poller) inOrder(t *testing.T) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := 1; i < len(p.seen); i++ {
		if before, now := p.seen[i-1].state, p.seen[i].state; !slices.Contains(follows[before], now) {
			t.Errorf("the list went from %s to %s", before, now)
		}
	}
}

func (n *node) named(t *testing.T, name string) models.Container {
	t.Helper()
	var list []models.Container
	n.Must(t, http.StatusOK, http.MethodGet, "/container?name="+name, nil, &list)
	return list[0]
}

// Images are kept running as Kraken keeps them: created, reloaded, killed, ended, failing and tried again, given up, and deleted, while
// another client lists without a pause and sees no state that can't be.
func TestKrakenModule(t *testing.T) {
	t.Parallel()
	testkit.Elsewhere(t)
	n := newNode(t, "--stop-timeout", "2s")
	k := module(t, n)
	p := poll(t, n.TCP(t), "app")
	image := func(command string) *models.Container { return n.simple("", command) }

	t.Run("create", func(t *testing.T) {
		k.define("app", image(forever))
		k.define("data", image(forever))
		k.becomes(t, "app", fateActive)
		k.becomes(t, "data", fateActive)
	})
	t.Run("reload", func(t *testing.T) {
		before := n.named(t, "app")
		k.define("app", image(`/bin/sh -c "trap '' TERM; while :; do sleep 1000; done"`)) // takes the whole stop timeout to go the next time
		k.becomes(t, "app", fateActive)
		k.define("app", image(forever))
		k.becomes(t, "app", fateActive)
		if after := n.named(t, "app"); after.ID <= before.ID || *after.Command != forever {
			t.Errorf("the container is %d with the command %s", after.ID, *after.Command)
		}
	})
	for name, signal := range map[string]syscall.Signal{"is killed": syscall.SIGKILL, "ends by itself": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			before := n.named(t, "app")
			failed, _ := k.last("app")
			must(t, syscall.Kill(int(before.Pid), signal))
			k.recovers(t, "app", failed)
			if after := n.named(t, "app"); after.ID <= before.ID {
				t.Errorf("container %d was not created again", before.ID)
			}
		})
	}
	t.Run("recovers", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "image")
		late := image(forever)
		late.Mount = overlay(squash(path))
		k.define("late", late)
		k.until(t, "late fails", func() bool { return k.failures["late"] > 0 })
		if _, code := k.last("late"); code != http.StatusUnprocessableEntity {
			t.Errorf("an image that is not there is error %d", code)
		}
		must(t, os.Link(n.image, path))
		k.becomes(t, "late", fateActive)
		k.define("late", nil)
		k.forgets(t, "late")
	})
	t.Run("gives up", func(t *testing.T) {
		bad := image("/bin/none")
		k.define("bad", bad)
		k.becomes(t, "bad", fateFatal)
		k.define("bad", nil)
		k.until(t, "nothing is left of an image that was given up", func() bool {
			return !slices.ContainsFunc(n.list(t, "/mount"), func(m object) bool { return m.Refs != 1 || m.Phase != "ready" })
		})
	})
	t.Run("refusals", func(t *testing.T) {
		// One that it does not expect, of each operation: a name that is taken, none to stop, none to delete.
		failed, _ := k.last("app")
		k.create("app")
		if _, code := k.last("app"); code != http.StatusConflict {
			t.Errorf("a name that is taken is error %d", code)
		}
		k.recovers(t, "app", failed)
		none := "none"
		state := containers.NewSetContainerStateParams()
		state.Name, state.State = &none, "exited"
		_, err := k.api.Containers.SetContainerState(state)
		k.failed(none, err)
		remove := containers.NewDeleteContainerParams()
		remove.Name = &none
		_, err = k.api.Containers.DeleteContainer(remove)
		k.failed(none, err)
		if _, code := k.last(none); code != http.StatusNotFound {
			t.Errorf("a name that nobody has is error %d", code)
		}
	})
	t.Run("delete", func(t *testing.T) {
		k.define("app", nil)
		k.define("data", nil)
		k.forgets(t, "app")
		k.forgets(t, "data")
		k.until(t, "nothing is left", func() bool { return n.everything(t.Context(), t) == "[] [] []" })
	})
	p.inOrder(t)
}

// A create that hangs is answered before Kraken's client gives up, with an error that it knows; the lists go on meanwhile, and when the
// device answers again so does the image come up.
func TestKrakenHangingCreate(t *testing.T) {
	t.Parallel()
	disk := testkit.Map(t, testkit.Ext4(t, testkit.Busybox(t)))
	n := newNode(t)
	resume := disk.Suspend(t)
	k := module(t, n)
	k.back = func(tried int) time.Duration { return 5 * time.Second << (tried - 1) } // as Kraken: the device has to come back meanwhile
	begin := time.Now()
	local := &models.Attach{Kind: "local", Local: &models.AttachLocal{Path: &disk.Path}}
	k.define("slow", &models.Container{Command: to(forever), Mount: device(local, "ext4")})
	k.until(t, "slow fails", func() bool { return k.failures["slow"] > 0 })
	if _, code := k.last("slow"); code != http.StatusGatewayTimeout || time.Since(begin) > 30*time.Second {
		t.Errorf("a create that hangs is error %d after %v", code, time.Since(begin))
	}
	resume()
	k.becomes(t, "slow", fateActive)
	k.define("slow", nil)
	k.forgets(t, "slow")
}

// smooth fails the test if an image has failed.
func (k *kraken) smooth(t *testing.T, name string) {
	t.Helper()
	if failed, code := k.last(name); failed > 0 {
		t.Errorf("%s has failed %d times, last with %d", name, failed, code)
	}
}

// beginsToStop waits until the server is stopping a container.
func (n *node) beginsToStop(t *testing.T, name string) {
	t.Helper()
	testkit.Eventually(t, name+" is being stopped", func() bool { return n.named(t, name).StoppingSince != nil })
}

// Images that need more than the second between two lists to stop are reloaded and deleted without an error, also if they are changed again
// meanwhile.
func TestKrakenSlowStop(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--stop-timeout", "4s")
	k := module(t, n)
	k.define("app", n.simple("", stubborn))
	k.define("data", n.simple("", stubborn))
	k.becomes(t, "app", fateActive)
	k.becomes(t, "data", fateActive)
	k.define("app", n.simple("", forever))
	n.beginsToStop(t, "app")
	last := n.simple("", stubborn)
	k.define("app", last)
	k.becomes(t, "app", fateActive)
	if c := n.named(t, "app"); *c.Command != stubborn {
		t.Errorf("the container runs %q", *c.Command)
	}
	k.smooth(t, "app")
	k.rest()
	k.becomes(t, "app", fateIdle)
	k.becomes(t, "data", fateIdle)
	k.smooth(t, "app")
	k.smooth(t, "data")
	k.until(t, "nothing is left", func() bool { return n.everything(t.Context(), t) == "[] [] []" })
}

// A server that is killed during a stop, or while it recovers, is started again: images that run are left alone, and the one that stops is
// reloaded.
func TestKrakenAndKilledServers(t *testing.T) {
	t.Parallel()
	n := newRestartable(t, "--stop-timeout", "4s")
	k := module(t, n)
	k.define("app", n.simple("", stubborn))
	k.define("data", n.simple("", forever))
	k.becomes(t, "app", fateActive)
	k.becomes(t, "data", fateActive)
	data := n.named(t, "data")
	k.mu.Lock()
	k.cut = true
	k.mu.Unlock()
	k.define("app", n.simple("", forever))
	n.beginsToStop(t, "app")
	n.Kill(t)
	for range 3 {
		n.Launch(t)
		if list := n.first(t, "/container"); len(list) != 2 {
			t.Errorf("the first list is %+v", list)
		}
		n.Kill(t)
	}
	n.Again(t)
	k.becomes(t, "app", fateActive)
	if c := n.named(t, "app"); *c.Command != forever {
		t.Errorf("the container runs %q", *c.Command)
	}
	if c := n.named(t, "data"); c.ID != data.ID || c.Pid != data.Pid {
		t.Errorf("the container %d with process %d is now %d with %d", data.ID, data.Pid, c.ID, c.Pid)
	}
	k.smooth(t, "data")
}

// A container that cannot be killed keeps its image waiting without an error, and is deleted when its processes have ended.
func TestKrakenAndUnkillableContainers(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	testkit.Need(t, "fsfreeze")
	n := newNode(t)
	k := module(t, n)
	root := device(loopback(testkit.Ext4(t, testkit.Busybox(t))), "ext4")
	k.define("app", &models.Container{Command: to(`/bin/sh -c "while :; do echo 1 > /file; done"`), Mount: root})
	k.becomes(t, "app", fateActive)
	c := n.named(t, "app")
	testkit.Run(t, "fsfreeze", "-f", c.Mount.Mountpoint)
	thaw := sync.OnceFunc(func() { _ = exec.Command("fsfreeze", "-u", c.Mount.Mountpoint).Run() })
	t.Cleanup(thaw)
	testkit.Eventually(t, "it hangs", func() bool { return stateOf(c.Pid) == "D" })
	k.define("app", nil)
	k.until(t, "it is broken", func() bool { return n.named(t, "app").Phase == "broken" })
	if now := n.named(t, "app"); now.State != "running" || now.Error == "" {
		t.Errorf("it is %s: %q", now.State, now.Error)
	}
	thaw()
	k.forgets(t, "app")
	k.smooth(t, "app")
}
