package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"

	"github.com/kraken-hpc/imageapi/client/attachments"
	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/client/mounts"
	"github.com/kraken-hpc/imageapi/models"
)

// The classes of objects, in the server's words.
const (
	classContainer = "container"
	classMount     = "mount"
	classAttach    = "attach"
)

// An object is what is the same about containers, mounts and attachments.
type object struct {
	class string
	id    int64
	kind  string // of mounts and attachments
	name  string // of containers
	state string
	where string // what to look at on the node
	why   string // the error that it shows
	waits string // what it waits for
	needs []int64
	// neededBy are the objects that depend on it, in the server's words.
	neededBy []int64
	model    any // the generated model
}

// String names o as messages of the server do.
func (o object) String() string {
	switch {
	case o.kind != "":
		return fmt.Sprintf("%s %d (%s)", o.class, o.id, o.kind)
	case o.name != "":
		return fmt.Sprintf("%s %d (%s)", o.class, o.id, o.name)
	}
	return fmt.Sprintf("%s %d", o.class, o.id)
}

// world is all that is on the node.
type world struct {
	Containers  []*models.Container `json:"containers,omitzero"`
	Mounts      []*models.Mount     `json:"mounts,omitzero"`
	Attachments []*models.Attach    `json:"attachments,omitzero"`
}

// load reads everything. What changes meanwhile may be seen in one list and not in another.
func (a *app) load(ctx context.Context) (w world, err error) {
	c, err := a.connect()
	if err != nil {
		return w, err
	}
	return c.load(ctx)
}

func (c *connection) load(ctx context.Context) (w world, err error) {
	var failed [3]error
	w.Containers, failed[0] = c.containers(ctx, &containers.ListContainersParams{})
	w.Mounts, failed[1] = c.mounts(ctx, &mounts.ListMountsParams{})
	w.Attachments, failed[2] = c.attachments(ctx, &attachments.ListAttachmentsParams{})
	return w, cmp.Or(failed[:]...)
}

func (c *connection) containers(ctx context.Context, p *containers.ListContainersParams) ([]*models.Container, error) {
	answer, err := c.Containers.ListContainersContext(ctx, p)
	if err != nil {
		return nil, unwrapped(err)
	}
	return answer.Payload, nil
}

func (c *connection) mounts(ctx context.Context, p *mounts.ListMountsParams) ([]*models.Mount, error) {
	answer, err := c.Mounts.ListMountsContext(ctx, p)
	if err != nil {
		return nil, unwrapped(err)
	}
	return answer.Payload, nil
}

func (c *connection) attachments(ctx context.Context, p *attachments.ListAttachmentsParams) ([]*models.Attach, error) {
	answer, err := c.Attachments.ListAttachmentsContext(ctx, p)
	if err != nil {
		return nil, unwrapped(err)
	}
	return answer.Payload, nil
}

// objects returns all of w in the order of their ids.
func (w world) objects() (all []object) {
	for _, c := range w.Containers {
		all = append(all, ofContainer(c))
	}
	for _, m := range w.Mounts {
		all = append(all, ofMount(m))
	}
	for _, t := range w.Attachments {
		all = append(all, ofAttach(t))
	}
	slices.SortFunc(all, func(a, b object) int { return cmp.Compare(a.id, b.id) })
	return all
}

func ofContainer(c *models.Container) object {
	o := object{class: classContainer, id: int64(c.ID), name: string(c.Name), state: stateOf(c), where: commandLine(c), why: c.Error, waits: c.WaitsFor, model: c}
	if c.Mount != nil {
		o.needs = []int64{int64(c.Mount.ID)}
	}
	return o
}

func ofMount(m *models.Mount) object {
	return object{class: classMount, id: int64(m.ID), kind: m.Kind, state: m.Phase, where: m.Mountpoint, why: m.Error, waits: m.WaitsFor, needs: below(m), neededBy: holders(m.NeededBy), model: m}
}

func ofAttach(t *models.Attach) object {
	o := object{class: classAttach, id: int64(t.ID), kind: t.Kind, state: t.Phase, where: t.DeviceFile, why: t.Error, waits: t.WaitsFor, neededBy: holders(t.NeededBy), model: t}
	if t.Loopback != nil && t.Loopback.Mount != nil {
		o.needs = []int64{int64(t.Loopback.Mount.ID)}
	}
	if t.Verity != nil && t.Verity.HashDevice != nil {
		o.needs = append(o.needs, int64(t.Verity.HashDevice.ID))
	}
	return o
}

func holders(all []*models.Holder) (ids []int64) {
	for _, h := range all {
		ids = append(ids, int64(h.ID))
	}
	return ids
}

// below returns what a mount needs, the top first.
func below(m *models.Mount) (ids []int64) {
	add := func(lower *models.Mount) {
		if lower != nil {
			ids = append(ids, int64(lower.ID))
		}
	}
	if m.Overlay != nil {
		if m.Overlay.Upper != nil {
			add(m.Overlay.Upper.Mount)
		}
		for _, lower := range m.Overlay.Lower {
			add(lower)
		}
	}
	if m.Bind != nil {
		add(m.Bind.Mount)
	}
	if m.Attach != nil && m.Attach.Attach != nil {
		ids = append(ids, int64(m.Attach.Attach.ID))
	}
	return ids
}

// stateOf tells where a container is: its phase unless it is ready, else its state and how its last run ended.
func stateOf(c *models.Container) string {
	state := string(c.State)
	switch {
	case c.Phase != "" && c.Phase != "ready":
		return c.Phase
	case state == "running" && c.Ready != nil && !*c.Ready:
		return "running (not ready)"
	case state != "exited" && state != "dead":
		return state
	case c.Signal != 0:
		return fmt.Sprintf("%s (signal %d)", state, c.Signal)
	case c.ExitCode != nil:
		return fmt.Sprintf("%s (%d)", state, *c.ExitCode)
	}
	return state
}

func commandLine(c *models.Container) string {
	line := text(c.Command)
	for _, arg := range c.Args {
		line += " " + strconv.Quote(arg)
	}
	return line
}

// A reference is how a user names an object.
type reference struct {
	id   int64  // 0 if it can't be one
	name string // empty if it can't be one
}

var referenceSyntax = regexp.MustCompile(`^(id:|name:)?([A-Za-z0-9._-]+)$`)

// parseReference reads an id, a container's name, or either with its sort before it, as id:4 or name:4.
func parseReference(s string) (r reference, err error) {
	match := referenceSyntax.FindStringSubmatch(s)
	if match == nil {
		return r, usage("%q is neither an id nor the name of a container", s)
	}
	id, failed := strconv.ParseInt(match[2], 10, 64)
	switch {
	case match[1] == "name:" || match[1] == "" && failed != nil:
		return reference{name: match[2]}, nil
	case failed != nil || id <= 0:
		return r, usage("%q is not an ID; use a number from 1", s)
	case match[1] == "id:":
		return reference{id: id}, nil
	}
	return reference{id, match[2]}, nil
}

// pick returns the object that r means.
func (r reference) pick(all []object) (object, error) {
	var found []object
	for _, o := range all {
		if r.id != 0 && o.id == r.id || r.name != "" && o.name == r.name {
			found = append(found, o)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return object{}, fail(exitNotFound, "%s", r.missing())
	}
	return object{}, usage("%d is the id of %s, and %s has it as its name: say id:%d or name:%d", r.id, ofID(found, r.id), ofOther(found, r.id), r.id, r.id)
}

func (r reference) missing() string {
	switch {
	case r.id == 0:
		return fmt.Sprintf("no container is named %q", r.name)
	case r.name == "":
		return fmt.Sprintf("no object has the id %d", r.id)
	}
	return fmt.Sprintf("no object has the id %d, and no container that name", r.id)
}

func ofID(found []object, id int64) object {
	return found[slices.IndexFunc(found, func(o object) bool { return o.id == id })]
}

func ofOther(found []object, id int64) object {
	return found[slices.IndexFunc(found, func(o object) bool { return o.id != id })]
}

// find returns the object that a user means.
func (a *app) find(ctx context.Context, s target) (object, error) {
	r, err := parseReference(string(s))
	if err != nil {
		return object{}, err
	}
	w, err := a.load(ctx)
	if err != nil {
		return object{}, err
	}
	return r.pick(w.objects())
}

// findContainer returns the container that a user means.
func (a *app) findContainer(ctx context.Context, s target) (*models.Container, error) {
	o, err := a.find(ctx, s)
	if err != nil {
		return nil, err
	}
	c, ok := o.model.(*models.Container)
	if !ok {
		return nil, usage("%s is not a container", o)
	}
	return c, nil
}

// each does something for each object that was named, all of them even if some fail.
func each(targets []target, do func(target) error) error {
	var failed []error
	for _, t := range targets {
		if err := do(t); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
