package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The modes of the socket: only root may connect, or a group too. The API is root.
const (
	socketMode      = 0o600
	socketGroupMode = 0o660
)

// listener is a listening socket and what holds for its connections.
type listener struct {
	net.Listener
	scheme      string
	url         string
	limit       int // of connections; 0 for any number
	read, write time.Duration
	handler     http.Handler // nil for the API
}

// listen opens all listeners of cfg, or none. Schemes that given ones are for need no other.
func listen(ctx context.Context, cfg Config, given ...listener) (opened []listener, err error) {
	opened = given
	defer func() {
		if err != nil {
			closeAll(opened)
		}
	}()
	for _, scheme := range cfg.listeners() {
		if slices.ContainsFunc(given, func(l listener) bool { return l.scheme == scheme }) {
			continue
		}
		l, err := open(ctx, scheme, cfg)
		if err != nil {
			return opened, err
		}
		opened = append(opened, l)
	}
	return opened, nil
}

func closeAll(listeners []listener) {
	for _, l := range listeners {
		_ = l.Close() // it is given up anyway
	}
}

func open(ctx context.Context, scheme string, cfg Config) (listener, error) {
	var l net.Listener
	var err error
	switch scheme {
	case schemeUnix:
		l, err = listenUnix(ctx, cfg.Listen.SocketPath, cfg.Listen.Group)
	case schemeHTTPS:
		l, err = listenTCP(ctx, cfg.TLS.Host, cfg.TLS.Port)
	case schemeMetrics:
		l, err = listenTCP(ctx, cfg.Listen.MetricsHost, cfg.Listen.MetricsPort)
	default:
		l, err = listenTCP(ctx, cfg.Listen.Host, cfg.Listen.Port)
	}
	if err != nil {
		return listener{}, err
	}
	return newListener(l, scheme, cfg), nil
}

// newListener returns l as one for a scheme, with what cfg says about its connections.
func newListener(l net.Listener, scheme string, cfg Config) listener {
	made := listener{l, scheme, scheme + "://" + l.Addr().String(), cfg.Limits.Listen, cfg.Limits.Read, cfg.Limits.Write, nil}
	switch scheme {
	case schemeUnix:
	case schemeHTTPS:
		made.Listener, made.limit, made.read, made.write = lasting{l, cfg.TLS.KeepAlive}, cfg.TLS.ListenLimit, cfg.TLS.Read, cfg.TLS.Write
	case schemeMetrics:
		made.Listener, made.url, made.limit = lasting{l, cfg.Limits.KeepAlive}, "http://"+l.Addr().String()+"/metrics", 0
	default:
		made.Listener = lasting{l, cfg.Limits.KeepAlive}
	}
	return made
}

func listenTCP(ctx context.Context, host string, port uint16) (net.Listener, error) {
	config := net.ListenConfig{KeepAlive: -1} // lasting sets it
	l, err := config.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err != nil {
		return nil, err // it names the address and the cause; a typed nil must not become a Listener
	}
	return l, nil
}

// listenUnix opens the socket. The kernel gives it the mode of the descriptor that is bound (unix(7), net/unix/af_unix.c),
// so that there is no moment in which others could connect, and no umask to change for the whole process. A group is let in
// after it owns the socket.
func listenUnix(ctx context.Context, path, group string) (net.Listener, error) {
	gid := -1
	if group != "" {
		var err error
		if gid, err = groupID(group); err != nil {
			return nil, fmt.Errorf("--socket-group: %w", err)
		}
	}
	if err := whileOccupied(ctx, func() error { return removeStale(path) }); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), socketMode) })
		return errors.Join(err, failed)
	}}
	opened, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	l := &unixListener{UnixListener: opened.(*net.UnixListener), path: path}
	l.SetUnlinkOnClose(false)
	if l.file, err = os.Lstat(path); err == nil && gid >= 0 {
		err = errors.Join(os.Lchown(path, -1, gid), os.Chmod(path, socketGroupMode))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare unix socket %s: %w", path, err), l.Close())
	}
	return l, nil
}

// unixListener removes the file of its socket when it is closed, but not one that another server has put in its place.
type unixListener struct {
	*net.UnixListener
	path string
	file os.FileInfo
	once sync.Once
}

// Close removes the file while the socket still answers: until then no other server takes its place.
func (l *unixListener) Close() error {
	l.once.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && l.file != nil && os.SameFile(now, l.file) {
			_ = os.Remove(l.path) // the next server replaces it
		}
	})
	return l.UnixListener.Close()
}

// removeStale removes a socket without a listener, which a killed daemon leaves. It never removes one
// with a listener, or another file.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen on unix socket: %w", err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("listen on unix socket %s: there is something else than a socket", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		return errors.Join(fmt.Errorf("listen on unix socket %s: %w", path, occupied("another server answers there")), conn.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("listen on unix socket: %w", err)
	}
	if now, err := os.Lstat(path); err != nil || !os.SameFile(now, info) {
		return fmt.Errorf("listen on unix socket %s: %w", path, occupied("another server is about to answer there"))
	}
	return os.Remove(path)
}

// lasting is a TCP listener that has the kernel look after idle connections.
type lasting struct {
	net.Listener
	keepAlive time.Duration // 0 for never
}

// Accept returns the next connection.
func (l lasting) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if tcp, ok := conn.(*net.TCPConn); ok {
		// An error here is that of a connection that has ended already, and that its first read reports.
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: l.keepAlive > 0, Idle: l.keepAlive})
	}
	return conn, err
}
