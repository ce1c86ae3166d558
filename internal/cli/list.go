package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/util/jsonpath"

	"github.com/kraken-hpc/imageapi/client/attachments"
	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/client/mounts"
	"github.com/kraken-hpc/imageapi/internal/printable"
	"github.com/kraken-hpc/imageapi/models"
)

// query selects the objects that the server lists.
type query struct {
	classes     []string
	state, kind string
	labels      []string
}

// listing is a query with the parts that the client adds.
type listing struct {
	query
	phase   string
	filters []string
	sort    string
}

func (a *app) listCommand() *cobra.Command {
	var l listing
	c := &cobra.Command{
		Use: "list [CLASS...]", Aliases: []string{"ls", "ps"}, Short: "List objects",
		Long: "Lists containers, mounts and attachments, or only the classes that you name. As ps it lists containers only.",
		Example: `imageapi list
imageapi ps --state running
imageapi list mounts attachments --label job=4711
imageapi ps --filter mount.id=3 --sort name -o wide
imageapi ps -o 'jsonpath={[*].name}'
imageapi remove $(imageapi ps -q --state exited)`,
		ValidArgsFunction: offerClasses, Annotations: slowly("listing"),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if l.classes, err = parseClasses(args); err != nil {
				return err
			}
			if c.CalledAs() == "ps" {
				l.classes = append(l.classes, classContainer)
			}
			return a.list(c.Context(), l)
		},
	}
	choice(c, "kind", "only mounts and attachments of this `KIND`", setter(&l.kind), kinds()...)
	choice(c, "state", "only containers in this `STATE`", setter(&l.state), states()...)
	choice(c, "phase", "only objects in this `PHASE`", setter(&l.phase), phases()...)
	c.Flags().StringArrayVarP(&l.filters, "filter", "f", nil, "only objects whose field has this value: `FIELD=VALUE` or FIELD!=VALUE, with a path such as mount.id; repeat it to combine filters")
	c.Flags().StringArrayVarP(&l.labels, "label", "l", nil, "only objects with this label: `KEY=VALUE`; repeat it to combine labels")
	c.Flags().StringVar(&l.sort, "sort", "", "sort by this `FIELD`, or -FIELD for the reverse order (default: id)")
	return c
}

func (a *app) list(ctx context.Context, l listing) error {
	shown := l.named()
	all := len(shown) == 0
	if all {
		shown = []string{classContainer, classMount, classAttach}
	}
	l.classes = shown
	c, err := a.connect()
	if err != nil {
		return err
	}
	w, err := c.list(ctx, l.query)
	if err != nil {
		return err
	}
	objects, err := l.selected(w.objects())
	if err != nil {
		return err
	}
	return a.show(worldOf(objects, shown), objects, func() { a.tables(objects, shown, !all) })
}

// named returns the classes that were named, or else those that the filters are about.
func (l *listing) named() []string {
	classes := l.classes
	if len(classes) > 0 {
		return slices.Compact(slices.Sorted(slices.Values(classes)))
	}
	if l.state != "" {
		classes = append(classes, classContainer)
	}
	switch {
	case slices.Contains(mountKinds(), l.kind):
		classes = append(classes, classMount)
	case l.kind != "":
		classes = append(classes, classAttach)
	}
	return classes
}

// list asks for each class. An object that changes meanwhile may be in one list and not in another.
func (c *connection) list(ctx context.Context, q query) (w world, err error) {
	for _, class := range q.classes {
		switch class {
		case classContainer:
			answer, err := c.Containers.ListContainersContext(ctx, &containers.ListContainersParams{State: optional(q.state), Label: q.labels})
			if err != nil {
				return w, unwrapped(err)
			}
			w.Containers = answer.Payload
		case classMount:
			answer, err := c.Mounts.ListMountsContext(ctx, &mounts.ListMountsParams{Kind: optional(q.kind), Label: q.labels})
			if err != nil {
				return w, unwrapped(err)
			}
			w.Mounts = answer.Payload
		case classAttach:
			answer, err := c.Attachments.ListAttachmentsContext(ctx, &attachments.ListAttachmentsParams{Kind: optional(q.kind), Label: q.labels})
			if err != nil {
				return w, unwrapped(err)
			}
			w.Attachments = answer.Payload
		}
	}
	return w, nil
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// selected returns the objects that pass the filters of the client, sorted.
func (l *listing) selected(objects []object) ([]object, error) {
	filters := l.filters
	if l.phase != "" {
		filters = append(filters, "phase="+l.phase)
	}
	for _, f := range filters {
		name, value, ok := strings.Cut(f, "=")
		name, unwanted := strings.CutSuffix(name, "!")
		if !ok || name == "" {
			return nil, usage("--filter %q: use FIELD=VALUE or FIELD!=VALUE", f)
		}
		field, err := fieldAt(name)
		if err != nil {
			return nil, usage("--filter %q: %w", f, err)
		}
		objects = slices.DeleteFunc(objects, func(o object) bool { return field(o) == value == unwanted })
	}
	if l.sort == "" {
		return objects, nil
	}
	name, reverse := strings.CutPrefix(l.sort, "-")
	field, err := fieldAt(name)
	if err != nil {
		return nil, usage("--sort %q: %w", l.sort, err)
	}
	keys := map[int64]string{}
	for _, o := range objects {
		keys[o.id] = field(o)
	}
	slices.SortStableFunc(objects, func(a, b object) int {
		if reverse {
			a, b = b, a
		}
		return natural(keys[a.id], keys[b.id])
	})
	return objects, nil
}

// natural compares numbers as numbers, and all else as text.
func natural(a, b string) int {
	x, errX := strconv.ParseFloat(a, 64)
	y, errY := strconv.ParseFloat(b, 64)
	if errX == nil && errY == nil {
		return cmp.Compare(x, y)
	}
	return cmp.Compare(a, b)
}

// fieldAt returns the function that reads the field at a path, such as mount.id.
func fieldAt(path string) (func(object) string, error) {
	first := path[:len(path)-len(strings.TrimLeft(path, "abcdefghijklmnopqrstuvwxyz_"))]
	var known []string
	for _, model := range []any{models.Container{}, models.Mount{}, models.Attach{}} {
		known = append(known, fieldNames(reflect.TypeOf(model))...)
	}
	if !slices.Contains(known, first) {
		return nil, fmt.Errorf("unknown field%s", didYouMean(first, known, "see imageapi show"))
	}
	parsed := jsonpath.New("field").AllowMissingKeys(true)
	if err := parsed.Parse("{." + path + "}"); err != nil {
		return nil, err
	}
	return func(o object) string {
		var text strings.Builder
		_ = parsed.Execute(&text, generic(o.model)) // an object without the field has no text there
		return text.String()
	}, nil
}

// worldOf returns objects by their class: the list itself if there is only one class.
func worldOf(objects []object, classes []string) any {
	lists := map[string][]any{}
	for _, class := range classes {
		lists[class] = []any{}
	}
	for _, o := range objects {
		lists[o.class] = append(lists[o.class], o.model)
	}
	if len(classes) == 1 {
		return lists[classes[0]]
	}
	return struct {
		Containers  []any `json:"containers,omitzero"`
		Mounts      []any `json:"mounts,omitzero"`
		Attachments []any `json:"attachments,omitzero"`
	}{lists[classContainer], lists[classMount], lists[classAttach]}
}

// headings returns the headings of a class's table; those from narrow on are only for --output wide.
func headings(class string) (heads []string, narrow int) {
	switch class {
	case classContainer:
		return []string{"CONTAINER", "NAME", "STATE", "AGE", "MOUNT", "COMMAND", "PID", "RESTARTS", "LABELS"}, 6
	case classMount:
		return []string{"MOUNT", "KIND", "PHASE", "AGE", "REFS", "MOUNTPOINT", "OF", "LABELS"}, 7
	}
	return []string{"ATTACH", "KIND", "PHASE", "AGE", "REFS", "DEVICE", "OF", "LABELS"}, 7
}

// cells returns the row of an object under the headings of its class.
func (a *app) cells(o object) []string {
	labels := labelsOf(o.labels)
	switch m := o.model.(type) {
	case *models.Container:
		var mount string
		if m.Mount != nil {
			mount = number(m.Mount.ID)
		}
		return []string{number(m.ID), o.name, o.state, age(a.now(), m.Since), mount, o.where, nonzero(m.Pid), nonzero(m.Restarts), labels}
	case *models.Mount:
		return []string{number(m.ID), o.kind, o.state, age(a.now(), m.Since), number(m.Refs), o.where, m.Source, labels}
	case *models.Attach:
		return []string{number(m.ID), o.kind, o.state, age(a.now(), m.Since), number(m.Refs), o.where, m.Source, labels}
	}
	return nil
}

func labelsOf(labels map[string]string) string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, key+"="+labels[key])
	}
	return strings.Join(all, ",")
}

// tables writes a table for each class, and below them the errors. Without empty, it leaves out classes without objects.
func (a *app) tables(objects []object, classes []string, empty bool) {
	written := 0
	for _, class := range classes {
		heads, narrow := headings(class)
		if a.format.kind == formatWide {
			narrow = len(heads)
		}
		t := newTable(heads[:narrow]...)
		for _, o := range objects {
			if o.class == class {
				t.add(a.cells(o)[:narrow]...)
			}
		}
		if len(t.rows) == 1 && !empty {
			continue
		}
		if written++; written > 1 {
			a.printf("\n")
		}
		a.table(t)
	}
	if written == 0 {
		a.printf("No containers, mounts or attachments.\n")
	}
	for i, line := range remarks(objects) {
		if i == 0 {
			a.printf("\n")
		}
		a.printf("%s\n", printable.Text(line))
	}
}

// remarks returns the errors of objects, and what they wait for.
func remarks(objects []object) (lines []string) {
	for _, o := range objects {
		if o.why != "" {
			lines = append(lines, fmt.Sprintf("%s: %s", o, o.why))
		}
		if o.waits != "" {
			lines = append(lines, fmt.Sprintf("%s waits for %s", o, o.waits))
		}
	}
	return lines
}
