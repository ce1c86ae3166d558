package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/daemon"
)

// role is the environment variable that makes this program the daemon.
const role = "IMAGEAPI_CRASH_ROLE"

// watch is the one that has what the daemon starts be watched.
const watch = "IMAGEAPI_CRASH_WATCH"

// controlFD is the daemon's end of the socket to the test.
const controlFD = 3

func TestMain(m *testing.M) {
	if os.Getenv(role) == "daemon" {
		os.Exit(beDaemon(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// beDaemon is what cmd/imageapi-server does, with a failpoint.
func beDaemon(args []string) int {
	cfg, _, err := daemon.Parse(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	b := &board{}
	unix.CloseOnExec(controlFD)
	if os.Getenv(watch) != "" {
		if err := beWatched(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
	}
	if err := b.obey(); err != nil { // the first order comes before the first act
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	go func() {
		for b.obey() == nil {
		}
	}()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if err := daemon.Run(ctx, cfg, daemon.Options{Log: daemon.NewLog(cfg.Log, os.Stderr), Failpoint: b.pass}); err != nil {
		fmt.Fprintln(os.Stderr, "failed:", err)
		return 1
	}
	return 0
}

// What a board does at a point that it counts.
const (
	rest = "rest" // nothing, and it counts none
	kill = "kill" // it ends the process at the nth: each act has one before it and one after it
	fail = "fail" // it has the nth act fail
)

var errInjected = errors.New("injected failure")

// board is the failpoint of a daemon.
type board struct {
	mu     sync.Mutex
	mode   string
	seen   int // since the last order
	target int
}

// obey waits for an order of the test and confirms it.
func (b *board) obey() error {
	buf := make([]byte, 64)
	n, err := unix.Read(controlFD, buf)
	if err != nil || n == 0 {
		return errors.New("the test is gone")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := fmt.Sscanf(string(buf[:n]), "%s %d", &b.mode, &b.target); err != nil {
		return err
	}
	b.seen = 0
	return tell("obeyed")
}

func tell(text string) error {
	_, err := unix.Write(controlFD, []byte(text))
	return err
}

// pass is the failpoint.
func (b *board) pass(act string, perform func() error) error {
	if err := b.point("before", act); err != nil {
		return err
	}
	err := perform()
	_ = b.point("after", act)
	return err
}

func (b *board) point(side, act string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mode == rest || b.mode == fail && side == "after" {
		return nil
	}
	_ = tell(side + " " + act)
	b.seen++
	if b.seen-1 != b.target {
		return nil
	}
	if b.mode == kill {
		_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
		select {}
	}
	return fmt.Errorf("%s: %w", act, errInjected)
}

// isPoint tells whether a message of a board names a point.
func isPoint(message string) bool {
	return strings.HasPrefix(message, "before ") || strings.HasPrefix(message, "after ")
}
