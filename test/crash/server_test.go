package crash

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// server is a daemon that runs.
type server struct {
	*harness.Client
	cmd     *exec.Cmd
	control *os.File
	obeyed  chan struct{} // one for each order
	ended   chan struct{} // closed when it has been waited for
	err     error         // of that
	log     string        // a file with what it says

	mu     sync.Mutex
	points []string // that it has passed since the last order, and the one that it died at
	before []string // those between the last two orders

	watcher *watcher // of what the daemon starts, or nil
}

// comm is what the kernel calls a daemon.
func comm() string {
	name := filepath.Base(os.Args[0])
	return name[:min(len(name), 15)]
}

// start starts a daemon with a first order, and returns when it answers or has ended.
func start(t testing.TB, runDir, cgroup, mode string, target int, env ...string) *server {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	theirs := os.NewFile(uintptr(pair[1]), "control of the daemon")
	s := &server{control: os.NewFile(uintptr(pair[0]), "control"), obeyed: make(chan struct{}, 1), ended: make(chan struct{})}
	socket := filepath.Join(runDir, "api.sock")
	s.Client = (&harness.Daemon{Socket: socket}).Unix(t)
	s.cmd = exec.Command(os.Args[0], "--scheme", "unix", "--socket-path", socket, "--run-dir", runDir, "--cgroup-parent", cgroup,
		"--stop-timeout", "300ms", "--create-timeout", "20s")
	s.cmd.Env = append(append(os.Environ(), role+"=daemon"), env...)
	s.cmd.ExtraFiles = []*os.File{theirs}
	// No pipes: what the daemon has just forked has them open, and is stopped there.
	s.log = filepath.Join(filepath.Dir(runDir), "images", "log")
	said, err := os.Create(s.log)
	check(t, err)
	defer said.Close()
	s.cmd.Stdout, s.cmd.Stderr = said, said
	err = s.cmd.Start()
	theirs.Close() // it is open in the daemon alone, so that its end is heard
	check(t, err)
	var heard sync.WaitGroup
	heard.Go(s.hear)
	go func() {
		defer close(s.ended)
		s.err = s.cmd.Wait()
		_ = unix.Shutdown(int(s.control.Fd()), unix.SHUT_RD) // the end of what it has told, as above
		heard.Wait()
		s.control.Close()
	}()
	s.order(mode, target)
	testkit.Eventually(t, "the daemon answers or ends", func() bool { return s.over() || s.answers() })
	return s
}

func (s *server) answers() bool {
	_, err := s.all()
	return err == nil
}

// hear takes down what the daemon tells until it is gone.
func (s *server) hear() {
	for buf, rights := make([]byte, 256), make([]byte, unix.CmsgSpace(4)); ; {
		n, rightsLen, _, _, err := unix.Recvmsg(int(s.control.Fd()), buf, rights, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || n == 0:
			return
		case rightsLen > 0:
			s.watch(rights[:rightsLen])
		default:
			s.take(string(buf[:n]))
		}
	}
}

// watch begins to answer what the kernel asks about what the daemon starts.
func (s *server) watch(rights []byte) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return
	}
	if files, err := unix.ParseUnixRights(&messages[0]); err == nil {
		s.watcher = &watcher{listener: files[0], daemon: s.cmd.Process.Pid, behead: s.kill}
		go s.watcher.run()
	}
}

func (s *server) take(message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if isPoint(message) {
		s.points = append(s.points, message)
		return
	}
	s.before, s.points = s.points, nil
	s.obeyed <- struct{}{}
}

// order tells the daemon what to do at which point from now on. It returns the points that were passed before, and whether the
// daemon lives.
func (s *server) order(mode string, target int) (passed []string, lives bool) {
	_ = unix.Sendto(int(s.control.Fd()), fmt.Appendf(nil, "%s %d", mode, target), unix.MSG_NOSIGNAL, nil)
	select {
	case <-s.obeyed:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.before, true
	case <-s.ended:
		return s.points, false
	}
}

// said returns the daemon's log.
func (s *server) said() string {
	text, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func (s *server) over() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// kill kills the daemon from the outside.
func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
}

// stop ends the daemon as an administrator does.
func (s *server) stop(t testing.TB) {
	t.Helper()
	_ = s.cmd.Process.Signal(unix.SIGTERM)
	testkit.Eventually(t, "the daemon ends", s.over)
	if s.err != nil {
		t.Errorf("the daemon ends with %v", s.err)
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
