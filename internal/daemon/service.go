package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/logkey"
)

// Service is what a service manager such as systemd has given to the daemon: a socket to report to and sockets to listen on. The
// zero value is that of a daemon without one.
type Service struct {
	notify   string        // the unix socket for reports, with @ first if its name is abstract; empty for none
	watchdog time.Duration // how often it wants to hear that the daemon is alive; 0 for never
	sockets  []given
	log      *slog.Logger
}

// given is a socket that the service manager listens on, by the name that it has there.
type given struct {
	file *os.File
	name string
}

// firstSocket is the descriptor of the first socket (sd_listen_fds(3)).
const firstSocket = 3

// TakeService reads what a service manager has put into the environment for this process. Children need no protection from it:
// they get an environment of their own, and no socket.
func TakeService(log *slog.Logger) (Service, error) { return takeService(os.Getenv, os.Getpid(), log) }

func takeService(env func(string) string, pid int, log *slog.Logger) (Service, error) {
	s := Service{notify: env("NOTIFY_SOCKET"), log: log}
	if text := env("WATCHDOG_USEC"); text != "" && forUs(env("WATCHDOG_PID"), pid, true) {
		usec, err := strconv.ParseInt(text, 10, 64)
		if err != nil || usec <= 0 {
			return s, fmt.Errorf("read $WATCHDOG_USEC: %q is no number of microseconds", text)
		}
		s.watchdog = time.Duration(usec) * time.Microsecond
	}
	text := env("LISTEN_FDS")
	if text == "" || !forUs(env("LISTEN_PID"), pid, false) {
		return s, nil
	}
	count, err := strconv.Atoi(text)
	if err != nil || count < 0 || count > 1<<10 {
		return s, fmt.Errorf("read $LISTEN_FDS: %q is no number of sockets", text)
	}
	names := strings.Split(env("LISTEN_FDNAMES"), ":")
	for i := range count {
		g := given{name: "unknown"}
		if i < len(names) && names[i] != "" {
			g.name = names[i]
		}
		unix.CloseOnExec(firstSocket + i)
		g.file = os.NewFile(uintptr(firstSocket+i), g.name)
		s.sockets = append(s.sockets, g)
	}
	return s, nil
}

// forUs reports whether variables are meant for the process pid, and not for one that it has them from.
func forUs(text string, pid int, otherwise bool) bool {
	if text == "" {
		return otherwise
	}
	return text == strconv.Itoa(pid)
}

// report sends assignments to the service manager (sd_notify(3)). It is none of the daemon's work, so that a failure is only logged.
func (s Service) report(assignments ...string) {
	if s.notify == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.notify, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(strings.Join(assignments, "\n")))
		_ = conn.Close() // the datagram is sent
	}
	if err != nil {
		s.log.Warn("service manager notification failed", logkey.Notification, assignments[0], logkey.Error, err)
	}
}

// ready reports that requests are answered. The number of the process is for a manager that has started it through another one.
func (s Service) ready() {
	s.report("READY=1", fmt.Sprintf("MAINPID=%d", os.Getpid()), "STATUS=Serving requests")
}

// reloads reports a reload of the configuration while act runs.
func (s Service) reloads(act func()) {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // it has no way to fail
	s.report("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
	defer s.ready()
	act()
}

// attend reports twice in the time of the watchdog that the daemon is alive, as long as alive returns, and when ctx ends that
// it stops.
func (s Service) attend(ctx context.Context, alive func()) {
	defer s.report("STOPPING=1", "STATUS=Ending")
	var due <-chan time.Time
	if s.watchdog > 0 {
		ticker := time.NewTicker(s.watchdog / 2)
		defer ticker.Stop()
		due = ticker.C
	}
	for {
		select {
		case <-due:
			alive()
			s.report("WATCHDOG=1")
		case <-ctx.Done():
			return
		}
	}
}
