package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// foreteller is a node whose log tells each act.
type foreteller struct {
	*node
	last int64 // the greatest id that was seen
}

// tells makes a server's log tell each act.
var tells = []string{"--log-level", "debug"}

func newForeteller(t *testing.T, flags ...string) *foreteller {
	t.Helper()
	return &foreteller{node: newNode(t, append(tells, flags...)...)}
}

// resourceOf returns where a definition is posted to.
func resourceOf(def any) string {
	switch def.(type) {
	case *models.Attach:
		return "/attach"
	case *models.Mount:
		return "/mount"
	}
	return "/container"
}

// plan has a request answered with its plan, and proves that nothing has changed by that: no object, no file, nothing in the kernel and
// nothing in the journal.
func (n *node) plan(t *testing.T, def any) models.Plan {
	t.Helper()
	var p models.Plan
	n.unchanged(t, func() { n.Must(t, http.StatusOK, http.MethodPost, resourceOf(def)+"/plan", def, &p) })
	return p
}

func (n *node) unchanged(t *testing.T, during func()) {
	t.Helper()
	journal := func() string {
		text, err := os.ReadFile(filepath.Join(n.RunDir, "journal.db"))
		must(t, err)
		return string(text)
	}
	scope := n.Scope(filepath.Dir(n.image))
	scope.PID = 0 // the server looks at its mounts from time to time, and has the table open then
	objects, written, state := n.everything(t.Context(), t), journal(), testkit.Snapshot(t, scope)
	during()
	if after := n.everything(t.Context(), t); after != objects {
		t.Errorf("a dry run has changed the objects from %s to %s", objects, after)
	}
	if journal() != written {
		t.Error("a dry run has written to the journal")
	}
	state.Same(t)
}

// actLine is what the log tells of an act.
var actLine = regexp.MustCompile(`msg="act completed" act=(up|start) object=\d+ class=(\S+) kind=(\S+) path=(\S+) `)

// acts returns those that the log tells from an offset on, once the request is done that they were for.
func (n *node) acts(t *testing.T, since int) (all []string) {
	t.Helper()
	testkit.Eventually(t, "the log tells of the request", func() bool { return strings.Contains(n.Log()[since:], "status=201") })
	for _, m := range actLine.FindAllStringSubmatch(n.Log()[since:], -1) {
		all = append(all, fmt.Sprintf("%s %s %s %s", m[1], m[4], m[2], strings.Trim(m[3], `"`)))
	}
	return all
}

// foretold takes the plan of a request, makes what was asked for, and compares what was planned with what was done, in its order, and
// with what is there. It returns the id of the new object.
func (n *foreteller) foretold(t *testing.T, def any) models.ID {
	t.Helper()
	p := n.plan(t, def)
	n.look(t)
	since := len(n.Log())
	a := n.Must(t, http.StatusCreated, http.MethodPost, resourceOf(def), def, nil)
	var planned []string
	for _, s := range p.Steps {
		if s.Does == nil || *s.Does == "" {
			t.Errorf("step %s of %s does nothing", *s.Act, *s.Path)
		}
		o := at(t, a.Body, *s.Path)
		if o.Kind != s.Kind {
			t.Errorf("the plan has a %s of kind %q at %s, and there is kind %q", *s.Class, s.Kind, *s.Path, o.Kind)
		}
		switch *s.Act {
		case "use":
			if o.ID != s.ID {
				t.Errorf("the plan uses object %d at %s, and %d was used", s.ID, *s.Path, o.ID)
			}
			continue
		case "up":
			if n.last++; o.ID != n.last || s.ID != 0 {
				t.Errorf("the plan makes %s next, as the object %d; it is object %d (id %d in the plan)", *s.Path, n.last, o.ID, s.ID)
			}
		}
		planned = append(planned, fmt.Sprintf("%s %s %s %s", *s.Act, *s.Path, *s.Class, s.Kind))
	}
	last := n.last
	if n.look(t); n.last != last {
		t.Errorf("the last id is %d, and by the plan it would be %d", n.last, last)
	}
	if done := n.acts(t, since); strings.Join(done, "\n") != strings.Join(planned, "\n") {
		t.Errorf("planned was\n\t%s\nand done was\n\t%s", strings.Join(planned, "\n\t"), strings.Join(done, "\n\t"))
	}
	return models.ID(at(t, a.Body, strings.TrimPrefix(resourceOf(def), "/")).ID)
}

// look sees all ids that are there.
func (n *foreteller) look(t *testing.T) {
	t.Helper()
	for _, resource := range []string{"/attach", "/mount", "/container"} {
		for _, o := range n.list(t, resource) {
			n.last = max(n.last, o.ID)
		}
	}
}

var pathStep = regexp.MustCompile(`(\w+)(?:\[(\d+)\])?`)

// at returns the object at the path of a plan's step in the answer to the request.
func at(t *testing.T, answer []byte, path string) (o object) {
	t.Helper()
	for i, m := range pathStep.FindAllStringSubmatch(path, -1) {
		if i == 0 {
			continue // it is the answer itself
		}
		var fields map[string]json.RawMessage
		decode(t, answer, &fields)
		answer = fields[m[1]]
		if m[2] != "" {
			var list []json.RawMessage
			decode(t, answer, &list)
			index, err := strconv.Atoi(m[2])
			must(t, err)
			answer = list[index]
		}
	}
	decode(t, answer, &o)
	return o
}

func withUpper(m *models.Mount, upper *models.MountOverlayUpper) *models.Mount {
	m.Overlay.Upper = upper
	return m
}

// What is planned is what then happens, for each structure that needs no server.
func TestDryRun(t *testing.T) {
	t.Parallel()
	n := newForeteller(t)
	disk := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", testkit.Ext4(t, t.TempDir())))
	t.Cleanup(func() { testkit.Run(t, "losetup", "-d", disk) })
	dir, file := filepath.Split(n.image)
	image := n.attach(t, loopback(n.image))
	base := n.mount(t, device(attachID(image.ID), "squashfs"))
	none := &models.MountOverlayUpper{None: true}
	for name, def := range map[string]any{
		"local":                  local(disk),
		"loopback":               loopback(n.image),
		"loopback in a mount":    loopbackIn(bind(dir), "/"+file),
		"bind":                   bind(dir),
		"bind in a mount":        bindIn(mountID(base.ID), "/bin"),
		"bind of all":            &models.Mount{Kind: "bind", Bind: &models.MountBind{Path: &dir, Base: to("root"), Recursive: to(true), Ro: to(true)}},
		"device":                 squash(n.image),
		"device by id":           device(attachID(image.ID), "squashfs"),
		"device on a disk":       device(local(disk), "ext4", "noatime"),
		"overlay":                overlay(mountID(base.ID)),
		"overlay of many":        overlay(squash(n.image), mountID(base.ID), bind(dir)),
		"overlay over overlay":   overlay(overlay(mountID(base.ID))),
		"overlay without upper":  withUpper(overlay(mountID(base.ID)), none),
		"overlay kept on a disk": withUpper(overlay(squash(n.image)), &models.MountOverlayUpper{Mount: device(local(disk), "ext4"), Path: "/a"}),
		"container":              n.simple("made", forever),
		"container by id":        start(forever, mountID(base.ID)),
		"nested container":       n.nested(forever),
	} {
		t.Run(name, func(t *testing.T) {
			n.remove(t, http.StatusOK, resourceOf(def), n.foretold(t, def), "&force=true")
			testkit.Eventually(t, "what was made is gone", func() bool {
				return len(n.list(t, "/mount"))+len(n.list(t, "/attach"))+len(n.list(t, "/container")) == 2
			})
		})
	}
}

// refused has a request refused when it is a dry run and when it is meant, with the same answer, and returns that.
func (n *node) refused(t *testing.T, status int, def any) string {
	t.Helper()
	var dry string
	n.unchanged(t, func() { dry = n.Must(t, status, http.MethodPost, resourceOf(def)+"/plan", def, nil).Message() })
	if meant := n.Must(t, status, http.MethodPost, resourceOf(def), def, nil).Message(); meant != dry {
		t.Errorf("a dry run says\n\t%s\nand the request itself\n\t%s", dry, meant)
	}
	return dry
}

// What a dry run refuses is refused with the same words when it is meant.
func TestDryRunRefuses(t *testing.T) {
	t.Parallel()
	n := newForeteller(t, "--fs-types", "nosuchfs")
	dir := filepath.Dir(n.image)
	disk := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", testkit.Ext4(t, t.TempDir())))
	t.Cleanup(func() { testkit.Run(t, "losetup", "-d", disk) })
	used := n.attach(t, local(disk))
	ext4 := n.mount(t, device(attachID(used.ID), "ext4"))
	image := n.attach(t, loopback(n.image))
	base := n.mount(t, device(attachID(image.ID), "squashfs"))
	deep := n.mount(t, overlay(overlay(mountID(base.ID))))
	n.create(t, n.simple("taken", forever))
	kept := withUpper(overlay(mountID(base.ID)), &models.MountOverlayUpper{Mount: mountID(ext4.ID), Path: "/kept"})
	n.mount(t, kept)
	gone := n.mount(t, bind(dir))
	testkit.Run(t, "umount", gone.Mountpoint)
	n.becomesBroken(t, "/mount", gone.ID, "unmounted")
	open := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(open, []byte("c2VjcmV0"), 0o644))

	inMount := func(upper models.ID) *models.MountOverlayUpper {
		return &models.MountOverlayUpper{Mount: mountID(upper)}
	}
	with := func(change func(*models.Container)) *models.Container {
		c := start("/bin/true", mountID(base.ID))
		change(c)
		return c
	}
	command := func(command string) *models.Container { return start(command, mountID(base.ID)) }
	rbd := func(file string) *models.Attach {
		return &models.Attach{Kind: "rbd", Rbd: &models.AttachRbd{Monitors: []string{"127.0.0.1"}, Pool: to("p"), Image: to("i"),
			Options: &models.RbdOptions{Name: to("admin"), SecretFile: file}}}
	}
	for name, test := range map[string]struct {
		status int
		text   string
		def    any
	}{
		"missing file":             {422, "attach: open", loopback(dir + "/nowhere")},
		"missing file far below":   {422, "container.mount.overlay.lower[0].attach.attach: open", start("true", overlay(squash(dir+"/nowhere")))},
		"missing file in a mount":  {422, "attach: open", loopbackIn(mountID(base.ID), "/nowhere")},
		"not a disk":               {422, "directory", loopback(dir)},
		"no such device":           {422, "no such file", local("/dev/nowhere")},
		"no device":                {422, "not a block device", local("/dev/null")},
		"device in use":            {409, fmt.Sprintf("attachment %d has this device", used.ID), local(disk)},
		"no such directory":        {422, "mount: open", bind(dir + "/nowhere")},
		"bind of a file":           {422, "only directories", bind(n.image)},
		"bind of our mounts":       {422, `use the base "mount"`, bind(base.Mountpoint)},
		"file system not allowed":  {422, "mount.attach.fs_type", device(loopback(n.image), "vfat")},
		"file system not known":    {501, "mount: mount nosuchfs: the kernel has no such file system", device(loopback(n.image), "nosuchfs")},
		"option refused":           {422, "mount.attach.mount_options[0]", device(loopback(n.image), "squashfs", "source=/dev/sda")},
		"written on what is not":   {422, `option "rw": the device is read-only`, device(attachID(image.ID), "ext4", "rw")},
		"no such partition":        {422, "mount.attach.partition", &models.Mount{Kind: "attach", Attach: &models.MountAttach{Attach: attachID(image.ID), FsType: to("ext4"), Partition: 3}}},
		"mounted otherwise":        {409, "a file system is mounted in one way at a time", device(attachID(used.ID), "ext4", "errors=continue")},
		"unknown id":               {404, "mount.attach.attach: no attach has the id 99999", device(attachID(99999), "ext4")},
		"id of another class":      {404, fmt.Sprintf("no attach has the id %d", base.ID), device(attachID(base.ID), "ext4")},
		"id of what is broken":     {409, "is broken", overlay(mountID(gone.ID))},
		"three overlays":           {422, "mount.overlay.lower[0]: the tree already stacks 2 overlays", overlay(mountID(deep.ID))},
		"three new overlays":       {422, "mount.overlay.lower[0]: the tree already stacks 2 overlays", overlay(overlay(overlay(mountID(base.ID))))},
		"upper is lower":           {422, "mount.overlay.upper.mount: the same directory is lower[0]", withUpper(overlay(mountID(ext4.ID)), inMount(ext4.ID))},
		"upper can't be written":   {422, "mount.overlay.upper.mount: the mount is read-only", withUpper(overlay(bind(dir)), inMount(base.ID))},
		"upper is an overlay":      {422, "mount.overlay.upper.mount: the mount is an overlay", withUpper(overlay(bind(dir)), inMount(deep.ID))},
		"upper is in use":          {409, "has its upper layer in", kept},
		"name is taken":            {409, `the name "taken" is taken`, n.simple("taken", forever)},
		"namespace user":           {501, "container.namespaces", with(func(c *models.Container) { c.Namespaces = []models.ContainerNamespace{"user"} })},
		"no such device node":      {422, "container.devices[0]", with(func(c *models.Container) { c.Devices = []string{"/dev/nowhere"} })},
		"bind without source":      {422, "container.binds[1].source: open", with(func(c *models.Container) { c.Binds = binds(dir, "/mnt", dir+"/nowhere", "/srv") })},
		"no such command":          {422, "execute /bin/nowhere: no such file in the container", command("/bin/nowhere")},
		"command is a directory":   {422, "execute /bin: is a directory", command("/bin")},
		"command not in PATH":      {422, "execute nowhere: no such program in the container's PATH", command("nowhere")},
		"no secret":                {422, "attach.rbd.options.secret_file: open", rbd(dir + "/nowhere")},
		"secret for all to read":   {422, "chmod it to 0600", rbd(open)},
		"secret that is a link":    {422, "attach.rbd.options.secret_file", rbd("/proc/self/exe")},
		"kind without an operator": {501, "nvme", &models.Attach{Kind: "nvme"}},
	} {
		t.Run(name, func(t *testing.T) {
			if said := n.refused(t, test.status, test.def); !strings.Contains(said, test.text) {
				t.Errorf("%q lacks %q", said, test.text)
			}
		})
	}
}

// binds are pairs of source and target.
func binds(paths ...string) (all []*models.ContainerBind) {
	for i := 0; i < len(paths); i += 2 {
		all = append(all, &models.ContainerBind{Source: &paths[i], Target: &paths[i+1]})
	}
	return all
}

// What this kernel has not got is foreseen for what would ask a server.
func TestDryRunLacks(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/sys/kernel/modprobe"); err == nil {
		t.Skip("this kernel has modules")
	}
	n := newForeteller(t)
	for _, def := range []any{
		&models.Mount{Kind: "nfs", Nfs: &models.MountNfs{Host: to("127.0.0.1"), Path: to("/x")}},
		&models.Attach{Kind: "iscsi", Iscsi: &models.AttachIscsi{Initiator: to("iqn.2026-05.org.example:a"), Target: to("iqn.2026-05.org.example:b"), Host: to("127.0.0.1")}},
		&models.Attach{Kind: "rbd", Rbd: &models.AttachRbd{Monitors: []string{"127.0.0.1"}, Pool: to("p"), Image: to("i"), Options: &models.RbdOptions{Name: to("admin"), Secret: to("AQAAAAAAAAAAABAAAAAAAAAAAAAAAAAAAAAAAA==")}}},
	} {
		n.refused(t, http.StatusNotImplemented, def)
	}
}

// A dry run says that there would be too many objects, and counts for none itself.
func TestDryRunLimits(t *testing.T) {
	t.Parallel()
	n := newForeteller(t, "--max-objects", "3")
	n.plan(t, n.root())
	n.mount(t, squash(n.image))
	if said := n.refused(t, http.StatusConflict, n.root()); !strings.Contains(said, "--max-objects") {
		t.Error(said)
	}
}
