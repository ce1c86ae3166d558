package daemon

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/logkey"
)

// nameOfHTTPS is the name by which the service manager marks a TCP socket for https (FileDescriptorName=).
const nameOfHTTPS = "https"

// listeners returns what the service manager listens on, or an error if one of its sockets accepts clients that cfg excludes.
// Closing them leaves the service manager's own ends open, and the socket's file where it is.
func (s Service) listeners(cfg Config) (taken []listener, err error) {
	defer func() {
		if err != nil {
			closeAll(taken)
		}
	}()
	for _, g := range s.sockets {
		l, err := net.FileListener(g.file)
		_ = g.file.Close() // the listener has a copy
		if err != nil {
			return taken, fmt.Errorf("use socket %q of the service manager: not a listening stream socket; set Accept=no: %w", g.name, err)
		}
		t := newListener(l, g.scheme(l), cfg)
		taken = append(taken, t)
		if err := t.check(cfg); err != nil {
			return taken, fmt.Errorf("take socket %s of the service manager: %w", t.url, err)
		}
		s.log.Info("socket of the service manager used, --socket-path, --host and --port ignored", logkey.URL, t.url)
	}
	return taken, nil
}

// scheme returns the scheme that a socket is for.
func (g given) scheme(l net.Listener) string {
	switch {
	case l.Addr().Network() == "unix":
		return schemeUnix
	case g.name == nameOfHTTPS:
		return schemeHTTPS
	}
	return schemeHTTP
}

// check holds a listener that the daemon has not opened itself against cfg, as Parse and listenUnix do with its own.
func (l listener) check(cfg Config) error {
	if !cfg.uses(l.scheme) {
		return fmt.Errorf("the socket is for %s, which --scheme does not name; a TCP socket with FileDescriptorName=%s is for https", l.scheme, nameOfHTTPS)
	}
	if l.scheme == schemeUnix {
		return checkSocketFile(l.Addr().String(), cfg.Listen.Group)
	}
	proven := l.scheme == schemeHTTPS && cfg.TLS.CA != ""
	if !cfg.Listen.Anyone && !proven && !addressOf(l.Addr()).Addr().IsLoopback() {
		return errors.New("not on a loopback address: anyone who can reach it would have root on this node; use https with --tls-ca, or --allow-unauthenticated")
	}
	return nil
}

// checkSocketFile makes sure that only root and --socket-group can connect to a unix socket.
func checkSocketFile(path, group string) error {
	if path == "" || strings.HasPrefix(path, "@") {
		return errors.New("the socket has no file whose mode limits its clients; give ListenStream= a path")
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	gid := -1
	if group != "" {
		var err error
		if gid, err = groupID(group); err != nil {
			return fmt.Errorf("--socket-group: %w", err)
		}
	}
	switch mode := st.Mode & 0o777; {
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return errors.New("another file is in its place: restart the socket's unit")
	case int(st.Uid) != unix.Geteuid():
		return fmt.Errorf("the socket belongs to user %d, who could allow other users; set SocketUser=root", st.Uid)
	case mode == socketMode, mode == socketGroupMode && int(st.Gid) == gid:
		return nil
	default:
		return fmt.Errorf("its mode is %04o and its group %d, which lets others in: set SocketMode=0600, or SocketMode=0660 with SocketGroup= as --socket-group", mode, st.Gid)
	}
}
