package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
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
}

// listen opens all listeners of cfg, or none.
func listen(ctx context.Context, cfg Config) (opened []listener, err error) {
	defer func() {
		if err != nil {
			closeAll(opened)
		}
	}()
	for _, scheme := range cfg.Listen.Schemes {
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
	switch scheme {
	case schemeUnix:
		l, err := listenUnix(ctx, cfg.Listen.SocketPath, cfg.Listen.Group)
		return listener{l, scheme, "unix://" + cfg.Listen.SocketPath, cfg.Limits.Listen, cfg.Limits.Read, cfg.Limits.Write}, err
	case schemeHTTPS:
		l, err := listenTCP(ctx, cfg.TLS.Host, cfg.TLS.Port, cfg.TLS.KeepAlive)
		return listener{l, scheme, urlOf(scheme, l), cfg.TLS.ListenLimit, cfg.TLS.Read, cfg.TLS.Write}, err
	default:
		l, err := listenTCP(ctx, cfg.Listen.Host, cfg.Listen.Port, cfg.Limits.KeepAlive)
		return listener{l, scheme, urlOf(scheme, l), cfg.Limits.Listen, cfg.Limits.Read, cfg.Limits.Write}, err
	}
}

func urlOf(scheme string, l net.Listener) string {
	if l == nil {
		return ""
	}
	return scheme + "://" + l.Addr().String()
}

func listenTCP(ctx context.Context, host string, port uint16, keepAlive time.Duration) (net.Listener, error) {
	if keepAlive == 0 {
		keepAlive = -1 // what never is to package net
	}
	config := net.ListenConfig{KeepAlive: keepAlive}
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
	if err := outwait(ctx, func() error { return removeStale(path) }); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), socketMode) })
		return errors.Join(err, failed)
	}}
	l, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if gid < 0 {
		return l, nil
	}
	if err := errors.Join(os.Lchown(path, -1, gid), os.Chmod(path, socketGroupMode)); err != nil {
		return nil, errors.Join(fmt.Errorf("let group %s use the unix socket: %w", group, err), l.Close())
	}
	return l, nil
}

// removeStale removes a socket that nobody listens on, which a daemon that was killed leaves. It never removes one
// that answers, or anything else.
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
	return os.Remove(path)
}
