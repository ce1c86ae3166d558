package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// The node's root is neither below nor behind the container's: not even for a process that enters the mount namespace again, which leads to the
// root of that, nor for who takes the root away, nor for who goes up from a directory outside of a chroot.
func TestOldRootIsGone(t *testing.T) {
	t.Parallel()
	s := newStudio(t, func(dir string) {
		must(t, os.WriteFile(filepath.Join(dir, "mark"), []byte("of the image\n"), 0o644))
		must(t, os.Mkdir(filepath.Join(dir, "jail"), 0o755))
	})
	for _, c := range []struct{ name, script, want string }{
		{"entered again", "nsenter -t 1 -m cat /mark; nsenter -t 1 -m cut -d ' ' -f 5 /proc/1/mountinfo | grep -c '^/$'", "of the image\n1\n"},
		{"copied", "unshare -m cat /mark; unshare -m cut -d ' ' -f 5 /proc/self/mountinfo | grep -c '^/$'", "of the image\n1\n"},
		{"up", "cd /proc/1/root/../../..; cat mark; cd /proc/1/cwd/../../..; ls -d mark | wc -l", "of the image\n1\n"},
		{"taken away", "umount / 2>/dev/null; umount -l /; cat /mark; ls /proc /dev | wc -l", "of the image\n3\n"}, // the names and an empty line
	} {
		for _, s.streams = range []bool{false, true} {
			made := s.create(t, s.shell("exec sleep 1000")) // the last script leaves nothing to execute
			if got := s.sh(t, made.ID, c.script); got != c.want {
				t.Errorf("%s: %q", c.name, got)
			}
		}
	}
}

// An image whose command is the program that starts it, by a link or as an interpreter, starts that, as a container's process like any other,
// and can't write to it (CVE-2019-5736). A directory to begin in that is a descriptor of that program is refused (CVE-2024-21626).
func TestStartHostileImage(t *testing.T) {
	t.Parallel()
	s := newStudio(t, func(dir string) {
		must(t, os.Symlink("/proc/self/exe", filepath.Join(dir, "link")))
		must(t, os.WriteFile(filepath.Join(dir, "script"), []byte("#!/proc/self/exe\n"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "byfd"), []byte("#!/proc/self/fd/4 init\n"), 0o755))
		for fd := range 12 {
			must(t, os.Symlink(fmt.Sprintf("/proc/self/fd/%d", fd), filepath.Join(dir, fmt.Sprintf("cwd%d", fd))))
		}
	})
	server, err := os.ReadFile(fmt.Sprintf("/proc/%d/exe", s.PID))
	must(t, err)
	for _, command := range []string{"/link", "/script", "/link supervise", "/link init", "/link exec", "/link inside", "/link help", "/byfd"} {
		a, err := s.Do(t.Context(), http.MethodPost, "/container", start(command, overlay(mountID(s.base))))
		must(t, err)
		switch a.Status {
		case http.StatusCreated:
			var made models.Container
			decode(t, a.Body, &made)
			if state := s.rests(t, made.ID); state != models.ContainerStateDead {
				t.Errorf("%s becomes %s", command, state)
			}
			s.remove(t, http.StatusOK, "/container", made.ID)
		case http.StatusUnprocessableEntity:
		default:
			t.Errorf("%s: status %d: %s", command, a.Status, a.Body)
		}
	}
	for fd := range 12 {
		for _, dir := range []string{fmt.Sprintf("/proc/self/fd/%d", fd), fmt.Sprintf("/proc/1/fd/%d", fd), fmt.Sprintf("/cwd%d", fd), fmt.Sprintf("/proc/thread-self/fd/%d/..", fd)} {
			s.refuses(t, "container.working_dir: enter "+dir, s.shell("true", func(c *models.Container) { c.WorkingDir = dir }))
		}
	}
	s.refuses(t, "container.working_dir: enter /proc/1/root", s.shell("true", func(c *models.Container) { c.WorkingDir = "/proc/1/root" }))
	if after, err := os.ReadFile(fmt.Sprintf("/proc/%d/exe", s.PID)); err != nil || string(after) != string(server) {
		t.Errorf("the server's program has changed: %v", err)
	}
}

// Neither the socket of the supervisor nor what it writes down can be reached from inside, and no process of ours can be seen there,
// also not by what it has open.
func TestSupervisorIsOutOfReach(t *testing.T) {
	t.Parallel()
	s := newStudio(t, nil)
	made := s.create(t, s.shell("exec sleep 1000"))
	socket := filepath.Join(s.RunDir, "logs", fmt.Sprintf("%d.sock", made.ID))
	var st unix.Stat_t
	must(t, unix.Stat(socket, &st))
	if st.Mode != unix.S_IFSOCK|0o600 || st.Uid != 0 {
		t.Errorf("the supervisor's socket has mode %o and owner %d", st.Mode, st.Uid)
	}
	for _, path := range []string{socket, s.Socket, s.RunDir, filepath.Join(s.RunDir, "journal.db")} {
		for _, way := range []string{path, "/proc/1/root" + path, "/../../.." + path, "/proc/1/cwd/../.." + path} {
			s.streams = !s.streams // both ways
			if r := s.exec(t, made.ID, shell("ls -d "+way)); r.ExitCode == nil || *r.ExitCode == 0 {
				t.Errorf("%s is there inside: %s", way, show(r))
			}
		}
	}
	// The net namespace is the node's: a socket without a file could be reached in it.
	table := testkit.Run(t, "cat", "/proc/net/unix")
	for line := range strings.Lines(table) {
		if strings.Contains(line, "@") && strings.Contains(line, "imageapi") {
			t.Errorf("an abstract socket: %s", line)
		}
	}
	got := s.sh(t, made.ID, "for p in /proc/[0-9]*; do readlink $p/exe; for f in $p/fd/*; do readlink $f; done; done 2>/dev/null | sort -u")
	for line := range strings.Lines(got) {
		if line = strings.TrimSpace(line); line != "/dev/null" && line != "/bin/busybox" && !strings.HasPrefix(line, "pipe:[") && !strings.HasPrefix(line, "/proc/") {
			t.Errorf("a process inside has %s", line)
		}
	}
}
