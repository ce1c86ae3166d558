package holders

import (
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// Of a file system that is in another namespace too, and of one that is nowhere, the kernel tells so.
func TestElsewhere(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "unshare", "mount")
	if testkit.Older(t, 6, 12) {
		if _, known := elsewhere(0, 0); known {
			t.Error("a kernel that can't tell does")
		}
		return
	}
	point := t.TempDir()
	testkit.Run(t, "mount", "-t", "tmpfs", "tmpfs", point)
	t.Cleanup(func() { testkit.Run(t, "umount", point) })
	var st unix.Stat_t
	if err := unix.Stat(point, &st); err != nil {
		t.Fatal(err)
	}
	// Many mounts, so that they do not come in one answer.
	script := "mount -t tmpfs tmpfs /tmp; for i in $(seq 300); do mkdir /tmp/$i; mount -t tmpfs tmpfs /tmp/$i; done; mount --bind " + point + " /mnt; umount " + point + "; echo; read _"
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(filepath.Base(cmd.Path), err)
	}
	if found, known := elsewhere(unix.Major(st.Dev), unix.Minor(st.Dev)); !found || !known {
		t.Errorf("of a file system that another namespace has: found %v, known %v", found, known)
	}
	// Other tests on this machine make namespaces, which begin as copies of ours: only what there is not is nowhere else.
	if found, known := elsewhere(1<<12-1, 1<<20-1); found || !known {
		t.Errorf("of a file system that there is not: found %v, known %v", found, known)
	}
	_ = in.Close()
	_ = cmd.Wait() // read(1) fails at the end of its input
}
