package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"

	"github.com/kraken-hpc/imageapi/models"
)

// An object is what containers, mounts and attachments have in common.
type object struct {
	class  string
	id     int64
	kind   string // of mounts and attachments
	name   string // of containers
	state  string // as people see it
	run    string // of containers: the state alone
	where  string // its place on the node, or its command
	why    string // the error that it shows
	waits  string // what it waits for
	labels map[string]string
	needs  []int64
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

// reference returns the shortest word that names o on a command line.
func (o object) reference() string {
	if _, err := strconv.ParseInt(o.name, 10, 64); err == nil {
		return "name:" + o.name
	}
	return cmp.Or(o.name, strconv.FormatInt(o.id, 10))
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

func (c *connection) load(ctx context.Context) (world, error) {
	return c.list(ctx, query{classes: []string{classContainer, classMount, classAttach}})
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
	return object{class: classContainer, id: int64(c.ID), name: string(c.Name), state: stateOf(c), run: string(c.State), where: commandLine(c), why: c.Error, waits: c.WaitsFor, labels: c.Labels, needs: ids(c.Needs), model: c}
}

func ofMount(m *models.Mount) object {
	return object{class: classMount, id: int64(m.ID), kind: m.Kind, state: m.Phase, where: m.Mountpoint, why: m.Error, waits: m.WaitsFor, labels: m.Labels, needs: ids(m.Needs), neededBy: ids(m.NeededBy), model: m}
}

func ofAttach(t *models.Attach) object {
	return object{class: classAttach, id: int64(t.ID), kind: t.Kind, state: t.Phase, where: t.DeviceFile, why: t.Error, waits: t.WaitsFor, labels: t.Labels, needs: ids(t.Needs), neededBy: ids(t.NeededBy), model: t}
}

func ids(all []*models.Holder) (ids []int64) {
	for _, h := range all {
		ids = append(ids, int64(h.ID))
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
	id   int64  // 0 if it cannot be one
	name string // empty if it cannot be one
}

var referenceSyntax = regexp.MustCompile(`^(id:|name:)?([A-Za-z0-9._-]+)$`)

// parseReference reads an ID, a container's name, or either with its sort before it, as id:4 or name:4.
func parseReference(s string) (r reference, err error) {
	match := referenceSyntax.FindStringSubmatch(s)
	if match == nil {
		return r, usage("%q is neither an ID nor the name of a container", s)
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
	var found, named []object
	for _, o := range all {
		if r.id != 0 && o.id == r.id {
			found = append(found, o)
		} else if r.name != "" && o.name == r.name {
			named = append(named, o)
		}
	}
	switch found = append(found, named...); len(found) {
	case 1:
		return found[0], nil
	case 0:
		return object{}, fail(exitNotFound, "%s", r.missing(all))
	}
	return object{}, usage("%d is the ID of %s, and the name of %s; use id:%d or name:%d", r.id, found[0], found[1], r.id, r.id)
}

func (r reference) missing(all []object) string {
	switch {
	case r.name == "":
		return fmt.Sprintf("no object has the ID %d", r.id)
	case r.id != 0:
		return fmt.Sprintf("no object has the ID %d, and no container has this name", r.id)
	}
	var names []string
	for _, o := range all {
		if o.name != "" {
			names = append(names, o.name)
		}
	}
	return fmt.Sprintf("no container has the name %q%s", r.name, didYouMean(r.name, names, ""))
}

// find returns the object that a user means.
func (a *app) find(ctx context.Context, s string) (object, error) {
	r, err := parseReference(s)
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
func (a *app) findContainer(ctx context.Context, s string) (*models.Container, error) {
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
func each(targets []string, do func(target string) error) error {
	var failed []error
	for _, t := range targets {
		failed = append(failed, do(t))
	}
	return errors.Join(failed...)
}
