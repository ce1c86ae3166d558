package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/define"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// node is a server with an image to run.
type node struct {
	*harness.Daemon
	*harness.Client
	image   string // a SquashFS image of busybox
	streams bool   // commands run by a WebSocket, see eachWay
}

// newNode starts a server and proves after the test that the node's state is what it was when it had started.
func newNode(t *testing.T, flags ...string) *node {
	t.Helper()
	return newNodeBy(t, harness.Start, flags...)
}

// newNodeBy is newNode with another way to start the server.
func newNodeBy(t *testing.T, start func(t testing.TB, flags ...string) *harness.Daemon, flags ...string) *node {
	t.Helper()
	testkit.Root(t)
	image := testkit.BusyboxImage(t)
	// A command that is stopped before it has set its trap is only ended by the timeout.
	d := start(t, append([]string{"--stop-timeout", "1s"}, flags...)...)
	testkit.Unchanged(t, d.Scope(filepath.Dir(image)))
	n := &node{Daemon: d, Client: d.Unix(t), image: image}
	t.Cleanup(func() { n.clear(t) })
	return n
}

// clear deletes what a test created at the top level, so that what is left is a fault of the server.
func (n *node) clear(t testing.TB) {
	t.Helper()
	ctx := context.Background()
	for _, resource := range []string{"/container", "/mount", "/attach"} {
		// What still needs another comes down first, whatever the order of the list.
		for _, o := range n.listWith(ctx, t, resource) {
			_, _ = n.Do(ctx, http.MethodDelete, fmt.Sprintf("%s?id=%d&force=true", resource, o.ID), nil)
		}
	}
	if !testkit.Settles(func() bool { return n.empty(ctx, t) }) {
		t.Errorf("left after everything was deleted: %s", n.everything(ctx, t))
	}
}

func (n *node) empty(ctx context.Context, t testing.TB) bool {
	for _, resource := range []string{"/mount", "/attach", "/container"} {
		for _, o := range n.listWith(ctx, t, resource) {
			_, _ = n.Do(ctx, http.MethodDelete, fmt.Sprintf("%s?id=%d", resource, o.ID), nil)
		}
	}
	return n.everything(ctx, t) == "[] [] []"
}

func (n *node) everything(ctx context.Context, t testing.TB) string {
	t.Helper()
	var all []string
	for _, resource := range []string{"/container", "/mount", "/attach"} {
		a, err := n.Do(ctx, http.MethodGet, resource, nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.TrimSpace(string(a.Body)))
	}
	return strings.Join(all, " ")
}

// object is what all objects of the API have.
type object struct {
	ID         int64  `json:"id"`
	Kind       string `json:"kind"`
	Refs       int64  `json:"refs"`
	Phase      string `json:"phase"`
	Error      string `json:"error"`
	Mountpoint string `json:"mountpoint"`
	DeviceFile string `json:"device_file"`
	State      string `json:"state"`
}

func (n *node) list(t testing.TB, path string) []object {
	t.Helper()
	return n.listWith(t.Context(), t, path)
}

func (n *node) listWith(ctx context.Context, t testing.TB, path string) []object {
	t.Helper()
	a, err := n.Do(ctx, http.MethodGet, path, nil)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	var out []object
	decode(t, a.Body, &out)
	return out
}

// get returns one object, which must exist.
func (n *node) get(t testing.TB, resource string, id int64) object {
	t.Helper()
	var out []object
	n.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("%s?id=%d", resource, id), nil, &out)
	if len(out) != 1 {
		t.Fatalf("GET %s?id=%d: %d objects", resource, id, len(out))
	}
	return out[0]
}

func (n *node) container(t testing.TB, id models.ID) models.Container {
	t.Helper()
	var out []models.Container
	n.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("/container?id=%d", id), nil, &out)
	return out[0]
}

// create posts a container that must come up.
func (n *node) create(t testing.TB, c *models.Container) models.Container {
	t.Helper()
	var out models.Container
	n.Must(t, http.StatusCreated, http.MethodPost, "/container", c, &out)
	return out
}

func (n *node) mount(t testing.TB, m *models.Mount) models.Mount {
	t.Helper()
	var out models.Mount
	n.Must(t, http.StatusCreated, http.MethodPost, "/mount", m, &out)
	return out
}

func (n *node) attach(t testing.TB, a *models.Attach) models.Attach {
	t.Helper()
	var out models.Attach
	n.Must(t, http.StatusCreated, http.MethodPost, "/attach", a, &out)
	return out
}

// remove deletes an object and expects a status.
func (n *node) remove(t testing.TB, want int, resource string, id models.ID, more ...string) harness.Answer {
	t.Helper()
	return n.Must(t, want, http.MethodDelete, fmt.Sprintf("%s?id=%d%s", resource, id, strings.Join(more, "")), nil, nil)
}

// reaches waits until a container is in a state and returns it.
func (n *node) reaches(t testing.TB, id models.ID, state models.ContainerState) models.Container {
	t.Helper()
	var c models.Container
	if !testkit.Settles(func() bool { c = n.container(t, id); return c.State == state }) {
		t.Fatalf("container %d does not become %s: it is %s (%s)", id, state, c.State, c.Error)
	}
	return c
}

func to[T any](v T) *T { return &v }

var (
	loopback   = define.Loopback
	loopbackIn = define.LoopbackIn
	local      = define.Local
	device     = define.Device
	squash     = define.Squash
	bindIn     = define.BindIn
	nfs        = define.NFS
	overlay    = define.Overlay
)

func bind(path string) *models.Mount { return define.Bind(path) }

func mountID(id models.ID) *models.Mount   { return &models.Mount{ID: id} }
func attachID(id models.ID) *models.Attach { return &models.Attach{ID: id} }

// root is a writable root file system of the image.
func (n *node) root() *models.Mount { return overlay(squash(n.image)) }

// nested is the stack of five levels: container, overlay, squashfs, loopback, bind.
func (n *node) nested(command string) *models.Container {
	dir, file := filepath.Split(n.image)
	return &models.Container{
		Command: &command,
		Mount:   overlay(device(loopbackIn(bind(filepath.Clean(dir)), "/"+file), "squashfs")),
		State:   models.ContainerStateRunning,
	}
}

// simple is a container with a root of its own.
func (n *node) simple(name, command string) *models.Container {
	return &models.Container{Name: models.Name(name), Command: &command, Mount: n.root()}
}

// forever is a command that ends only when it is told to, and then at once.
const forever = `/bin/sh -c "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"`
