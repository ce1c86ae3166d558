package e2e

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// cephNode is a node with a Ceph cluster.
type cephNode struct {
	*node
	testkit.Ceph
}

// newCephNode also proves that no image stays mapped.
func newCephNode(t *testing.T, flags ...string) cephNode {
	t.Helper()
	ceph := testkit.StartCeph(t)
	t.Cleanup(func() {
		testkit.Eventually(t, "no image is mapped", func() bool {
			mapped, _ := filepath.Glob("/sys/bus/rbd/devices/*")
			return len(mapped) == 0
		})
	})
	return cephNode{newNode(t, flags...), ceph}
}

// rbd is an attachment of an image; change may alter it.
func (n cephNode) rbd(image string, change ...func(*models.AttachRbd)) *models.Attach {
	r := &models.AttachRbd{Monitors: []string{n.Monitor}, Pool: to("rbd"), Image: &image, Options: &models.RbdOptions{Name: to("admin"), Secret: &n.Secret}}
	for _, c := range change {
		c(r)
	}
	return &models.Attach{Kind: "rbd", Rbd: r}
}

func readOnly(r *models.AttachRbd) { r.Options.Ro = true }

// ext4Image makes an image with an ext4 file system with busybox.
func (n cephNode) ext4Image(t *testing.T, name string) {
	t.Helper()
	n.Image(t, name)
	a := n.attach(t, n.rbd(name))
	testkit.Run(t, "mkfs.ext4", "-q", "-d", testkit.Busybox(t), a.DeviceFile)
	n.remove(t, http.StatusOK, "/attach", a.ID)
}

func (n cephNode) logs(t *testing.T, c models.Container) string {
	t.Helper()
	text, err := os.ReadFile(c.Logfile)
	must(t, err)
	return string(text)
}

// An image that a container writes to keeps what was written; the second time it is given in the form of version 0.1.
func TestRBDWritable(t *testing.T) {
	n := newCephNode(t)
	n.ext4Image(t, "disk")
	c := n.create(t, start(`/bin/sh -c "echo kept >/file && sync && echo wrote"`, device(n.rbd("disk"), "ext4")))
	c = n.reaches(t, c.ID, models.ContainerStateExited)
	if got := n.logs(t, c); got != "wrote\n" {
		t.Errorf("it says %q", got)
	}
	a := c.Mount.Attach.Attach
	if a.Rbd == nil || a.Rbd.Options.Secret != nil || a.DeviceFile != fmt.Sprintf("/dev/rbd%d", a.Rbd.DeviceID) {
		t.Errorf("the attachment is answered as %+v, %+v", a, a.Rbd)
	}
	n.remove(t, http.StatusOK, "/container", c.ID)
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}

	old := fmt.Sprintf(`{"command":"/bin/cat /file","state":"running","mount":{"kind":"rbd","rbd":{"fs_type":"ext4","mount_options":["ro"],
		"rbd":{"id":1,"monitors":[%q],"pool":"rbd","image":"disk","options":{"name":"admin","secret":%q,"ro":true}}}}}`, n.Monitor, n.Secret)
	n.Must(t, http.StatusCreated, http.MethodPost, "/container", old, &c)
	if c.Mount.Kind != "attach" || c.Mount.Attach.Attach.Kind != "rbd" || !c.Mount.Attach.Attach.Rbd.Options.Ro {
		t.Errorf("it is answered as %+v", c.Mount)
	}
	c = n.reaches(t, c.ID, models.ContainerStateExited)
	if got := n.logs(t, c); got != "kept\n" {
		t.Errorf("it says %q", got)
	}
	n.remove(t, http.StatusOK, "/container", c.ID)
}

// Two containers write on top of one read-only image.
func TestRBDShared(t *testing.T) {
	n := newCephNode(t)
	n.Image(t, "squash")
	w := n.attach(t, n.rbd("squash"))
	testkit.Run(t, "dd", "if="+n.image, "of="+w.DeviceFile, "bs=1M", "oflag=direct", "conv=sync", "status=none")
	n.remove(t, http.StatusOK, "/attach", w.ID)

	base := n.mount(t, device(n.rbd("squash", readOnly), "squashfs"))
	var both []models.Container
	for i := range 2 {
		both = append(both, n.create(t, start(fmt.Sprintf(`/bin/sh -c "echo %d >/own; cat /own; exec sleep 1000"`, i), overlay(mountID(base.ID)))))
	}
	for i, c := range both {
		if !testkit.Settles(func() bool { return n.logs(t, c) == fmt.Sprintf("%d\n", i) }) {
			t.Errorf("container %d says %q", i, n.logs(t, c))
		}
	}
	n.remove(t, http.StatusConflict, "/mount", base.ID)
	for _, c := range both {
		n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
	}
	n.remove(t, http.StatusOK, "/mount", base.ID)
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
}

func TestRBDParallel(t *testing.T) {
	n := newCephNode(t)
	n.Image(t, "one")
	var wg sync.WaitGroup
	ids := make([]models.ID, 8)
	for i := range ids {
		wg.Go(func() {
			var a models.Attach
			answer, err := n.Do(t.Context(), http.MethodPost, "/attach", n.rbd("one", readOnly))
			if err != nil || answer.Status != http.StatusCreated {
				t.Errorf("attach: %d %s (%v)", answer.Status, answer.Body, err)
				return
			}
			decode(t, answer.Body, &a)
			ids[i] = a.ID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != 0 {
			n.remove(t, http.StatusOK, "/attach", id)
		}
	}
}

// What a client sends wrong, and what it is told besides.
func TestRBDAnswers(t *testing.T) {
	n := newCephNode(t)
	n.Image(t, "one")
	var a models.Attach
	answer := n.Must(t, http.StatusCreated, http.MethodPost, "/attach", n.rbd("one", readOnly, func(r *models.AttachRbd) {
		r.Options.Exclusive, r.Options.CephRequiresSignatures = true, true
	}), &a)
	warnings := strings.Join(answer.Header.Values("Warning"), "\n")
	for _, want := range []string{"attach.rbd.options.ceph_requires_signatures: the kernel ignores it", "attach.rbd.options.exclusive: a read-only mapping takes no lock"} {
		if !strings.Contains(warnings, want) {
			t.Errorf("warnings are %s; want %q", warnings, want)
		}
	}
	echo := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/attach", answer.Body, nil)
	if !strings.Contains(echo.Message(), "attach.rbd.options.secret: is required") {
		t.Errorf("an echo: %s", echo.Message())
	}
	for want, def := range map[string]*models.Attach{
		"attach.rbd.options.share: is the opposite of noshare": n.rbd("one", func(r *models.AttachRbd) { r.Options.Share, r.Options.Noshare = true, true }),
		"attach.rbd.options.name: must not contain a comma":    n.rbd("one", func(r *models.AttachRbd) { r.Options.Name = to("a,b") }),
		"attach.rbd.options.queue_depth: is 20000":             n.rbd("one", func(r *models.AttachRbd) { r.Options.QueueDepth = 20000 }),
	} {
		if got := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/attach", def, nil).Message(); !strings.Contains(got, want) {
			t.Errorf("%s; want %q", got, want)
		}
	}
	n.Must(t, http.StatusBadGateway, http.MethodPost, "/attach", n.rbd("one", readOnly, func(r *models.AttachRbd) { r.Options.Name = to("nobody") }), nil)
	n.remove(t, http.StatusOK, "/attach", a.ID)
}

// A reader does not keep its image from being deleted.
func TestRBDImageRemoved(t *testing.T) {
	n := newCephNode(t)
	n.RBD(t, "create", "--size", "16M", "doomed")
	a := n.attach(t, n.rbd("doomed", readOnly))
	n.RBD(t, "rm", "doomed")
	n.remove(t, http.StatusOK, "/attach", a.ID)
}

// slack is how late an answer at a deadline may be on a machine that is emulated and busy: what hangs is later than that.
const slack = 10 * time.Second

// unplug makes the network lose all that is sent to the cluster; the result mends it.
func unplug(t *testing.T) func() {
	t.Helper()
	testkit.Run(t, "nft", "table ip unplugged { chain c { type filter hook input priority 0; tcp dport { 3300, 6789, 6800-7300 } drop; tcp sport { 3300, 6789, 6800-7300 } drop; }; }")
	mend := sync.OnceFunc(func() { testkit.Run(t, "nft", "delete table ip unplugged") })
	t.Cleanup(mend)
	return mend
}

// A cluster that does not answer costs a create and a delete their time limits, and no other request anything.
func TestRBDHangs(t *testing.T) {
	n := newCephNode(t, "--create-timeout", "6s", "--delete-timeout", "4s")
	n.Image(t, "one")
	kept := n.attach(t, n.rbd("one"))
	mend := unplug(t)

	began := time.Now()
	answer := n.Must(t, http.StatusGatewayTimeout, http.MethodPost, "/attach", n.rbd("one", readOnly), nil)
	if late := time.Since(began) - 6*time.Second; late > slack {
		t.Errorf("the create was answered %v late", late)
	}
	t.Log(time.Since(began), answer.Message())
	began = time.Now()
	gone, err := n.Do(t.Context(), http.MethodDelete, fmt.Sprintf("/attach?id=%d", kept.ID), nil)
	must(t, err)
	if late := time.Since(began) - 4*time.Second; late > slack {
		t.Errorf("the delete was answered %v late", late)
	}
	t.Log(time.Since(began), gone.Status, string(gone.Body))
	if gone.Status != http.StatusOK && gone.Status != http.StatusGatewayTimeout {
		t.Errorf("the delete was answered %d %s", gone.Status, gone.Body)
	}
	began = time.Now()
	m := n.mount(t, bind(filepath.Dir(n.image)))
	n.remove(t, http.StatusOK, "/mount", m.ID)
	if took := time.Since(began); took > slack {
		t.Errorf("other objects took %v", took)
	}
	mend()
	if !testkit.Settles(func() bool { return n.everything(t.Context(), t) == "[] [] []" }) {
		t.Errorf("left when the cluster is back: %s", n.everything(t.Context(), t))
	}
	// For writing it would have to wait until the cluster has missed the client that was cut off. The kernel's own client may
	// need a moment to find the cluster again.
	var again models.Attach
	testkit.Eventually(t, "it is mapped again", func() bool {
		answer, err := n.Do(t.Context(), http.MethodPost, "/attach", n.rbd("one", readOnly))
		must(t, err)
		if answer.Status == http.StatusCreated {
			decode(t, answer.Body, &again)
		}
		return answer.Status != http.StatusGatewayTimeout
	})
	n.remove(t, http.StatusOK, "/attach", again.ID)
}

// The secret is in no answer, log, journal, command line or environment, and in no keyring that another user, or another
// process of root, can search; also not while the kernel uses it.
func TestRBDSecret(t *testing.T) {
	n := newCephNode(t, "--log-level", "debug", "--create-timeout", "8s")
	n.Image(t, "one")
	var answers strings.Builder
	send := func(ctx context.Context, method, path string, body any) models.Attach {
		var a models.Attach
		answer, err := n.Do(ctx, method, path, body)
		must(t, err)
		fmt.Fprintf(&answers, "%s\n%v\n", answer.Body, answer.Header)
		if answer.Status < 300 && method != http.MethodGet {
			decode(t, answer.Body, &a)
		}
		return a
	}
	a := send(t.Context(), http.MethodPost, "/attach", n.rbd("one"))
	send(t.Context(), http.MethodGet, "/attach", nil)
	send(t.Context(), http.MethodPost, "/attach", n.rbd("none"))
	send(t.Context(), http.MethodPost, "/attach", n.rbd("one", func(r *models.AttachRbd) { r.Options.Share, r.Options.Noshare = true, true }))
	places := searched(t, n)
	send(t.Context(), http.MethodDelete, fmt.Sprintf("/attach?id=%d", a.ID), nil)

	file := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(file, []byte(n.Secret+"\n"), 0o600))
	a = send(t.Context(), http.MethodPost, "/attach", n.rbd("one", func(r *models.AttachRbd) { r.Options.Secret, r.Options.SecretFile = nil, file }))
	if a.Rbd == nil || a.Rbd.Options.SecretFile != file {
		t.Errorf("with the secret in a file: %+v", a)
	}
	send(t.Context(), http.MethodDelete, fmt.Sprintf("/attach?id=%d", a.ID), nil)

	mend := unplug(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		send(t.Context(), http.MethodPost, "/attach", n.rbd("one", readOnly))
	}()
	seen := testkit.Settles(func() bool { return strings.Contains(keys(t, 0), " ceph ") || over(done) }) && !over(done)
	if !seen && !asksCluster(t) { // such a server does not get as far
		t.Error("the key is not seen by root while the kernel has it: is it where it should be?")
	}
	if text := keys(t, 65534); strings.Contains(text, " ceph ") {
		t.Errorf("another user sees it: %s", text)
	}
	for where, text := range searched(t, n) {
		places["meanwhile "+where] = text
	}
	<-done
	mend()
	places["answers"] = answers.String()
	for where, text := range places {
		if strings.Contains(text, n.Secret) {
			t.Errorf("%s: the secret is there", where)
		}
	}
	if !testkit.Settles(func() bool { return !strings.Contains(keys(t, 0), " ceph ") }) {
		t.Errorf("keys are left: %s", keys(t, 0))
	}
}

// asksCluster tells whether the server was built with Ceph's libraries, and so asks the cluster before the kernel does.
func asksCluster(t *testing.T) bool {
	t.Helper()
	info, err := buildinfo.ReadFile(harness.Server(t))
	must(t, err)
	return slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "-tags" && strings.Contains(s.Value, "ceph") })
}

func over(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// searched returns all places where a secret could be read.
func searched(t *testing.T, n cephNode) map[string]string {
	t.Helper()
	places := map[string]string{"log": n.Log()}
	for _, pattern := range []string{"/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ", n.RunDir + "/*", n.RunDir + "/*/*", "/sys/bus/rbd/devices/*/config_info"} {
		files, err := filepath.Glob(pattern)
		must(t, err)
		for _, file := range files {
			if text, err := os.ReadFile(file); err == nil {
				places[file] = string(text)
			}
		}
	}
	if places[n.RunDir+"/journal.db"] == "" {
		t.Error("the journal was not searched")
	}
	return places
}

// keys returns the keys that a user sees.
func keys(t *testing.T, uid int) string {
	t.Helper()
	out, err := exec.Command("setpriv", "--reuid", fmt.Sprint(uid), "--clear-groups", "cat", "/proc/keys").CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	return string(out)
}

// A mapping stays that of its image, whatever has the image's name later.
func TestRBDAnotherImage(t *testing.T) {
	n := newCephNode(t)
	n.RBD(t, "create", "--size", "16M", "moved")
	n.removeImage(t, "kept")
	a := n.attach(t, n.rbd("moved"))
	testkit.Run(t, "sh", "-c", "printf mine | dd of="+a.DeviceFile+" bs=512 conv=sync,fsync status=none")
	n.RBD(t, "rename", "moved", "kept")
	n.Image(t, "moved")
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	if got := testkit.Run(t, "head", "-c", "4", a.DeviceFile); got != "mine" {
		t.Errorf("it reads %q", got)
	}
	n.remove(t, http.StatusOK, "/attach", a.ID)
}

// removeImage removes an image after the test.
func (n cephNode) removeImage(t *testing.T, name string) {
	t.Helper()
	t.Cleanup(func() {
		testkit.Run(t, "timeout", "90", "sh", "-c", "until rbd rm --no-progress "+name+" 2>/dev/null; do sleep 1; done")
	})
}
