package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// manager is the socket of a service manager, and what was reported there.
func manager(t *testing.T) (Service, func() string) {
	t.Helper()
	path := filepath.Join(shortDir(t), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	next := func() string {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		text := make([]byte, 512)
		n, err := conn.Read(text)
		if err != nil {
			t.Fatal(err)
		}
		return string(text[:n])
	}
	return Service{notify: path, log: slog.New(slog.DiscardHandler)}, next
}

func TestReports(t *testing.T) {
	t.Parallel()
	s, next := manager(t)
	ready := fmt.Sprintf("READY=1\nMAINPID=%d\nSTATUS=Serving requests", os.Getpid())
	s.ready()
	if got := next(); got != ready {
		t.Errorf("reported %q", got)
	}
	s.reloads(func() { s.report("RELOADED") })
	for _, want := range []string{"RELOADING=1\nMONOTONIC_USEC=", "RELOADED", ready} {
		if got := next(); !strings.HasPrefix(got, want) {
			t.Errorf("reported %q, want %q", got, want)
		}
	}
	ctx, end := context.WithCancel(t.Context())
	go s.attend(ctx, func() { t.Error("checked although the service manager has no watchdog") })
	end()
	if got := next(); !strings.HasPrefix(got, "STOPPING=1") {
		t.Errorf("reported %q", got)
	}
}

// A daemon whose state is locked for ever is not alive, though it has processor time.
func TestWatchdogOfADaemonThatHangs(t *testing.T) {
	t.Parallel()
	s, next := manager(t)
	s.watchdog = 20 * time.Millisecond
	asked, well := make(chan bool), make(chan bool)
	ctx, end := context.WithCancel(t.Context())
	go s.attend(ctx, func() { asked <- true; <-well })
	for range 3 {
		<-asked
		s.report("BEFORE") // nothing comes before it
		if got := next(); got != "BEFORE" {
			t.Errorf("reported %q by a daemon that hangs", got)
		}
		well <- true
		if got := next(); got != "WATCHDOG=1" {
			t.Errorf("reported %q", got)
		}
	}
	end()
	select { // it may be asked once more
	case <-asked:
		well <- true
	case <-time.After(s.watchdog):
	}
	for got := next(); !strings.HasPrefix(got, "STOPPING=1"); got = next() {
		if got != "WATCHDOG=1" {
			t.Errorf("reported %q", got)
		}
	}
}

func TestServiceManagerIsGone(t *testing.T) {
	t.Parallel()
	var log logged
	s := Service{notify: filepath.Join(shortDir(t), "none"), log: slog.New(slog.NewTextHandler(&log, nil))}
	s.ready()
	if !strings.Contains(log.String(), `msg="service manager notification failed" notification="READY=1"`) {
		t.Errorf("logged %s", log.String())
	}
	Service{}.ready() // one that was never there
}

func TestTakeService(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		env      string // NAME=VALUE, by spaces
		watchdog time.Duration
		err      string
	}{
		{env: ""},
		{env: "NOTIFY_SOCKET=/n WATCHDOG_USEC=30000000", watchdog: 30 * time.Second},
		{env: "WATCHDOG_USEC=30000000 WATCHDOG_PID=7", watchdog: 30 * time.Second},
		{env: "WATCHDOG_USEC=30000000 WATCHDOG_PID=8"},
		{env: "WATCHDOG_USEC=soon", err: "WATCHDOG_USEC"},
		{env: "WATCHDOG_USEC=0", err: "WATCHDOG_USEC"},
		{env: "LISTEN_FDS=2"},
		{env: "LISTEN_FDS=2 LISTEN_PID=8"},
		{env: "LISTEN_FDS=0 LISTEN_PID=7"},
		{env: "LISTEN_FDS=-1 LISTEN_PID=7", err: "LISTEN_FDS"},
		{env: "LISTEN_FDS=some LISTEN_PID=7", err: "LISTEN_FDS"},
	} {
		env := map[string]string{}
		for _, entry := range strings.Fields(tt.env) {
			name, value, _ := strings.Cut(entry, "=")
			env[name] = value
		}
		s, err := takeService(func(name string) string { return env[name] }, 7, nil)
		if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) || tt.err == "" && err != nil {
			t.Errorf("%s: error %v, want %q", tt.env, err, tt.err)
		}
		if s.watchdog != tt.watchdog || s.notify != env["NOTIFY_SOCKET"] || len(s.sockets) > 0 {
			t.Errorf("%s: %+v", tt.env, s)
		}
	}
}

// give is what a service manager does with a listener that it has opened.
func give(t *testing.T, l net.Listener, err error, name string) (net.Listener, Service) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	file, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	return l, Service{sockets: []given{{file, name}}, log: slog.New(slog.DiscardHandler)}
}

func TestGivenUnixSockets(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(path string) error
		group  string
		err    string
	}{
		{name: "mode 0600", change: func(path string) error { return os.Chmod(path, 0o600) }},
		{name: "mode 0660", change: func(path string) error { return os.Chmod(path, 0o660) }, err: "its mode is 0660"},
		{name: "mode 0666", change: func(path string) error { return os.Chmod(path, 0o666) }, err: "SocketMode=0600"},
		{name: "the group", group: "1", change: func(path string) error { return errors.Join(os.Chown(path, -1, 1), os.Chmod(path, 0o660)) }},
		{name: "another group", group: "1", change: func(path string) error { return errors.Join(os.Chown(path, -1, 2), os.Chmod(path, 0o660)) }, err: "its group 2"},
		{name: "no group", group: "no such group", change: func(path string) error { return os.Chmod(path, 0o600) }, err: "--socket-group"},
		{name: "another user", change: func(path string) error { return errors.Join(os.Chmod(path, 0o600), os.Chown(path, nobody, -1)) }, err: "user 65534"},
		{name: "gone", change: os.Remove, err: "no such file"},
		{name: "another file", change: func(path string) error { return errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)) }, err: "another file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			testkit.Root(t)
			path := filepath.Join(shortDir(t), "s")
			l, err := net.Listen("unix", path)
			_, s := give(t, l, err, "imageapi.socket")
			if err := tt.change(path); err != nil {
				t.Fatal(err)
			}
			cfg := Config{Listen: Listen{Schemes: []string{schemeUnix}, Group: tt.group}, Limits: Limits{Listen: 7}}
			taken, err := s.listeners(cfg)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error is %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil || len(taken) != 1 || taken[0].url != "unix://"+path || taken[0].limit != 7 {
				t.Fatalf("%+v, %v", taken, err)
			}
			all, err := listen(t.Context(), cfg, taken...) // --socket-path is empty: to open it would fail
			if err != nil || len(all) != 1 {
				t.Fatal(err)
			}
			closeAll(all)
			if conn, err := net.Dial("unix", path); err != nil {
				t.Errorf("the service manager's socket is gone: %v", err)
			} else {
				_ = conn.Close()
			}
		})
	}
	l, err := net.Listen("unix", "@imageapi-test-"+filepath.Base(shortDir(t)))
	if _, s := give(t, l, err, "abstract"); err == nil {
		if _, err := s.listeners(Config{Listen: Listen{Schemes: []string{schemeUnix}}}); err == nil || !strings.Contains(err.Error(), "no file") {
			t.Errorf("an abstract socket: %v", err)
		}
	}
}

func TestGivenTCPSockets(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, at, socket string
		cfg              Config
		scheme           string
		err              string
	}{
		{name: "http", at: "127.0.0.1:0", socket: "a", cfg: Config{Listen: Listen{Schemes: []string{schemeHTTP}}}, scheme: schemeHTTP},
		{name: "http for everybody", at: "0.0.0.0:0", socket: "a", cfg: Config{Listen: Listen{Schemes: []string{schemeHTTP}}}, err: "not on a loopback address"},
		{name: "http for everybody, wanted", at: "0.0.0.0:0", socket: "a", cfg: Config{Listen: Listen{Schemes: []string{schemeHTTP}, Anyone: true}}, scheme: schemeHTTP},
		{name: "https without authority", at: "0.0.0.0:0", socket: "https", cfg: Config{Listen: Listen{Schemes: []string{schemeHTTPS}}}, err: "--tls-ca"},
		{name: "https with authority", at: "0.0.0.0:0", socket: "https", cfg: Config{Listen: Listen{Schemes: []string{schemeHTTPS}}, TLS: TLS{CA: "a"}}, scheme: schemeHTTPS},
		{name: "a scheme that is not wanted", at: "127.0.0.1:0", socket: "a", cfg: Config{Listen: Listen{Schemes: []string{schemeUnix}}}, err: "--scheme does not name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", tt.at)
			_, s := give(t, l, err, tt.socket)
			taken, err := s.listeners(tt.cfg)
			defer closeAll(taken)
			switch {
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("error is %v, want %q", err, tt.err)
			case tt.err == "" && (err != nil || taken[0].scheme != tt.scheme):
				t.Errorf("%+v, %v", taken, err)
			}
		})
	}
}

func TestGivenWhatIsNoListener(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s := Service{sockets: []given{{r, "fifo"}}}
	if _, err := s.listeners(Config{}); err == nil || !strings.Contains(err.Error(), `socket "fifo"`) {
		t.Errorf("error is %v", err)
	}
}

// --keep-alive holds for sockets that were given, and for those of the daemon.
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	for _, want := range []int{0, 7} {
		own, err := listenTCP(t.Context(), "127.0.0.1", 0)
		if err != nil {
			t.Fatal(err)
		}
		l := newListener(own, schemeHTTP, Config{Limits: Limits{KeepAlive: time.Duration(want) * time.Second}})
		defer l.Close()
		client, err := net.Dial("tcp", own.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var on, idle int
		err = raw.Control(func(fd uintptr) {
			on, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			idle, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
		})
		if err != nil || (on == 1) != (want > 0) || want > 0 && idle != want {
			t.Errorf("--keep-alive %d: on %d, after %d s, %v", want, on, idle, err)
		}
	}
}
