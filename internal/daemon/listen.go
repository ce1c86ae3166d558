package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

// socketMode lets only root connect: the API is root.
const socketMode = 0o600

// listener is a listening socket and what holds for its connections.
type listener struct {
	net.Listener
	url         string
	read, write time.Duration
}

// listen opens all listeners of cfg, or none.
func listen(ctx context.Context, cfg Config, certificates *certificates) (opened []listener, err error) {
	defer func() {
		if err != nil {
			closeAll(opened)
		}
	}()
	for _, scheme := range cfg.Listen.Schemes {
		l, err := open(ctx, scheme, cfg, certificates)
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

func open(ctx context.Context, scheme string, cfg Config, certificates *certificates) (listener, error) {
	switch scheme {
	case schemeUnix:
		l, err := listenUnix(ctx, cfg.Listen.SocketPath)
		return limited(l, cfg.Limits.Listen, "unix://"+cfg.Listen.SocketPath, cfg.Limits.Read, cfg.Limits.Write), err
	case schemeHTTPS:
		l, err := listenTLS(ctx, cfg.TLS, certificates)
		return limited(l, cfg.TLS.ListenLimit, urlOf(scheme, l), cfg.TLS.Read, cfg.TLS.Write), err
	default:
		l, err := listenTCP(ctx, cfg.Listen.Host, cfg.Listen.Port, cfg.Limits.KeepAlive)
		return limited(l, cfg.Limits.Listen, urlOf(scheme, l), cfg.Limits.Read, cfg.Limits.Write), err
	}
}

func limited(l net.Listener, limit int, url string, read, write time.Duration) listener {
	if limit > 0 && l != nil {
		l = netutil.LimitListener(l, limit)
	}
	return listener{Listener: l, url: url, read: read, write: write}
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

func listenTLS(ctx context.Context, cfg TLS, certificates *certificates) (net.Listener, error) {
	l, err := listenTCP(ctx, cfg.Host, cfg.Port, cfg.KeepAlive)
	if err != nil {
		return nil, err
	}
	return tls.NewListener(l, certificates.config()), nil
}

// listenUnix opens the socket. The kernel gives it the mode of the descriptor that is bound (unix(7), net/unix/af_unix.c),
// so that there is no moment in which others could connect, and no umask to change for the whole process.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := removeStale(path); err != nil {
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
		return errors.Join(fmt.Errorf("listen on unix socket %s: another server answers there", path), conn.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("listen on unix socket: %w", err)
	}
	return os.Remove(path)
}
