package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kraken-hpc/imageapi/client/attachments"
	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/client/mounts"
	"github.com/kraken-hpc/imageapi/internal/printable"
	"github.com/kraken-hpc/imageapi/models"
)

type listCommand struct {
	Kind  string `long:"kind" value-name:"KIND" description:"only mounts and attachments of this kind"`
	State string `long:"state" value-name:"STATE" description:"only containers in this state"`
	Phase string `long:"phase" choice:"pending" choice:"ready" choice:"stopping" choice:"broken" description:"only objects in this phase"`
	Args  struct {
		Classes []class `positional-arg-name:"containers|mounts|attachments"`
	} `positional-args:"yes"`
}

func (l *listCommand) run(ctx context.Context, a *app) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	wanted := l.classes()
	w, err := l.load(ctx, c, wanted)
	if err != nil {
		return err
	}
	return a.show(w.only(wanted), func() { a.tables(w, l.shown(w, wanted)) })
}

// classes returns those to list: the ones named, else those that the filters are about, else all.
func (l *listCommand) classes() []class {
	switch {
	case len(l.Args.Classes) > 0:
		return l.Args.Classes
	case l.State != "" && l.Kind == "":
		return []class{classContainer}
	case l.Kind != "" && l.State == "":
		return []class{classMount, classAttach}
	}
	return []class{classContainer, classMount, classAttach}
}

func (l *listCommand) load(ctx context.Context, c *connection, wanted []class) (w world, err error) {
	if slices.Contains(wanted, classContainer) {
		w.Containers, err = c.containers(ctx, &containers.ListContainersParams{State: optional(l.State)})
	}
	if err == nil && slices.Contains(wanted, classMount) {
		w.Mounts, err = c.mounts(ctx, &mounts.ListMountsParams{Kind: optional(l.Kind)})
	}
	if err == nil && slices.Contains(wanted, classAttach) {
		w.Attachments, err = c.attachments(ctx, &attachments.ListAttachmentsParams{Kind: optional(l.Kind)})
	}
	w.Containers = slices.DeleteFunc(w.Containers, func(c *models.Container) bool { return l.Phase != "" && c.Phase != l.Phase })
	w.Mounts = slices.DeleteFunc(w.Mounts, func(m *models.Mount) bool { return l.Phase != "" && m.Phase != l.Phase })
	w.Attachments = slices.DeleteFunc(w.Attachments, func(t *models.Attach) bool { return l.Phase != "" && t.Phase != l.Phase })
	return w, err
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// shown leaves out the classes that have nothing to show, unless they were named.
func (l *listCommand) shown(w world, wanted []class) []class {
	if len(l.Args.Classes) > 0 {
		return wanted
	}
	return slices.DeleteFunc(slices.Clone(wanted), func(c class) bool {
		return c == classContainer && len(w.Containers) == 0 || c == classMount && len(w.Mounts) == 0 || c == classAttach && len(w.Attachments) == 0
	})
}

// only returns what JSON shows: the list itself if there is one only.
func (w world) only(wanted []class) any {
	if len(wanted) != 1 {
		return w
	}
	switch wanted[0] {
	case classContainer:
		return w.Containers
	case classMount:
		return w.Mounts
	}
	return w.Attachments
}

// tables writes a table for each class, and below them what is wrong.
func (a *app) tables(w world, wanted []class) {
	if len(wanted) == 0 {
		a.printf("there is nothing\n")
	}
	for i, c := range wanted {
		if i > 0 {
			a.printf("\n")
		}
		switch c {
		case classContainer:
			a.containerTable(w.Containers)
		case classMount:
			a.mountTable(w.Mounts)
		case classAttach:
			a.attachTable(w.Attachments)
		}
	}
	for i, line := range remarks(w.objects()) {
		if i == 0 {
			a.printf("\n")
		}
		a.printf("%s\n", printable.Text(line))
	}
}

// remarks tell what is wrong with objects, and what they wait for.
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

func (a *app) containerTable(all []*models.Container) {
	t := newTable("CONTAINER", "NAME", "STATE", "AGE", "MOUNT", "COMMAND")
	for _, c := range all {
		var mount string
		if c.Mount != nil {
			mount = number(c.Mount.ID)
		}
		t.add(number(c.ID), string(c.Name), stateOf(c), age(a.now(), c.Since), mount, commandLine(c))
	}
	t.write(a.out, a.outWidth)
}

func (a *app) mountTable(all []*models.Mount) {
	t := newTable("MOUNT", "KIND", "PHASE", "AGE", "REFS", "MOUNTPOINT", "OF")
	for _, m := range all {
		t.add(number(m.ID), m.Kind, m.Phase, age(a.now(), m.Since), number(m.Refs), m.Mountpoint, mountSource(m))
	}
	t.write(a.out, a.outWidth)
}

func (a *app) attachTable(all []*models.Attach) {
	t := newTable("ATTACH", "KIND", "PHASE", "AGE", "REFS", "DEVICE", "OF")
	for _, d := range all {
		t.add(number(d.ID), d.Kind, d.Phase, age(a.now(), d.Since), number(d.Refs), d.DeviceFile, attachSource(d))
	}
	t.write(a.out, a.outWidth)
}

// mountSource tells what a mount is made of.
func mountSource(m *models.Mount) string {
	switch {
	case m.Attach != nil && m.Attach.Attach != nil:
		return fmt.Sprintf("%s on %d", text(m.Attach.FsType), m.Attach.Attach.ID)
	case m.Overlay != nil:
		var ids []string
		for _, lower := range m.Overlay.Lower {
			ids = append(ids, number(lower.ID))
		}
		return "over " + strings.Join(ids, ", ")
	case m.Bind != nil && m.Bind.Mount != nil:
		return fmt.Sprintf("%s in %d", text(m.Bind.Path), m.Bind.Mount.ID)
	case m.Bind != nil:
		return text(m.Bind.Path)
	case m.Nfs != nil:
		return text(m.Nfs.Host) + ":" + text(m.Nfs.Path)
	}
	return ""
}

// attachSource tells what a device is made of.
func attachSource(t *models.Attach) string {
	switch {
	case t.Loopback != nil && t.Loopback.Mount != nil:
		return fmt.Sprintf("%s in %d", text(t.Loopback.Path), t.Loopback.Mount.ID)
	case t.Loopback != nil:
		return text(t.Loopback.Path)
	case t.Local != nil:
		return text(t.Local.Path)
	case t.Iscsi != nil:
		return text(t.Iscsi.Target) + " at " + text(t.Iscsi.Host)
	case t.Rbd != nil && t.Rbd.Snapshot != "":
		return text(t.Rbd.Pool) + "/" + text(t.Rbd.Image) + "@" + t.Rbd.Snapshot
	case t.Rbd != nil:
		return text(t.Rbd.Pool) + "/" + text(t.Rbd.Image)
	}
	return ""
}
