package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/api"
	"github.com/kraken-hpc/imageapi/internal/sys/sockdiag"
)

// unixClient is the process that has opened a connection to the socket, as the kernel knows it (SO_PEERCRED, unix(7)). The mode
// of the socket is what lets it in.
func unixClient(conn net.Conn) *api.Client {
	credentials, err := credentialsOf(conn)
	if err != nil {
		return &api.Client{Refused: fmt.Sprintf("the kernel does not tell who you are: %v", err)}
	}
	return &api.Client{
		Key: userKey(credentials.Uid),
		Who: []slog.Attr{slog.Uint64("uid", uint64(credentials.Uid)), slog.Int("pid", int(credentials.Pid))},
	}
}

func credentialsOf(conn net.Conn) (credentials *unix.Ucred, err error) {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.New("not a unix socket")
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	failed := raw.Control(func(fd uintptr) {
		credentials, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return credentials, errors.Join(failed, err)
}

func userKey(uid uint32) string { return fmt.Sprintf("user %d", uid) }

// tcpClient is whoever has the address at the other end.
func tcpClient(conn net.Conn) *api.Client {
	from := addressOf(conn.RemoteAddr())
	return &api.Client{TCP: true, Key: from.Addr().String(), Who: []slog.Attr{slog.String("address", from.String())}}
}

func addressOf(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return netip.AddrPortFrom(tcp.AddrPort().Addr().Unmap(), tcp.AddrPort().Port())
	}
	return netip.AddrPort{}
}

// loopbackClients tells the clients on loopback apart, where every process of the node can connect.
type loopbackClients struct {
	users []uint32                          // who may send requests
	ours  func(cgroup uint64) (bool, error) // tells whether a cgroup belongs to a container; nil if those may too
}

// identify looks up whose the socket at the other end is. It is done when the connection is new, once for all its requests.
func (k loopbackClients) identify(conn net.Conn) *api.Client {
	c := tcpClient(conn)
	socket, err := sockdiag.Lookup(addressOf(conn.RemoteAddr()), addressOf(conn.LocalAddr()))
	switch {
	case errors.Is(err, sockdiag.ErrNone):
		c.Refused = "your socket is not to be found on this node"
		return c
	case err != nil:
		c.Refused = fmt.Sprintf("who you are can't be looked up: %v", err)
		return c
	case socket.State != sockdiag.Established || socket.Inode == 0:
		// The kernel shows user 0 as the owner of a socket that nobody has open any more.
		c.Refused = "your end of the connection was closed before it could be looked up whose it is"
		return c
	}
	c.Key = userKey(socket.UID)
	c.Who = append(c.Who, slog.Uint64("uid", uint64(socket.UID)))
	switch {
	case !slices.Contains(k.users, socket.UID):
		c.Refused = fmt.Sprintf("user %d may not use this server over TCP: --allow-user would allow it", socket.UID)
	case k.ours != nil:
		c.Refused = k.inContainer(socket.Cgroup)
	}
	return c
}

// inContainer returns why a client that is in a cgroup is refused, or nothing.
func (k loopbackClients) inContainer(cgroup uint64) string {
	if cgroup == 0 {
		return "the kernel does not tell whether you are in a container (it needs CONFIG_SOCK_CGROUP_DATA): --allow-containers would allow it"
	}
	ours, err := k.ours(cgroup)
	switch {
	case err != nil:
		return fmt.Sprintf("it can't be told whether you are in a container: %v", err)
	case ours:
		return "processes in containers of this server may not use it: --allow-containers would allow it"
	}
	return ""
}

// probe warns if the kernel can't be asked who the clients of l are: then all of them are refused.
func (k loopbackClients) probe(l listener, log *slog.Logger) {
	at := addressOf(l.Addr())
	nowhere := netip.IPv4Unspecified()
	if at.Addr().Is6() {
		nowhere = netip.IPv6Unspecified()
	}
	socket, err := sockdiag.Lookup(at, netip.AddrPortFrom(nowhere, 0))
	switch {
	case errors.Is(err, sockdiag.ErrNone), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		log.Error("clients of this listener are refused: the kernel can't tell who they are; load the modules inet_diag and tcp_diag (CONFIG_INET_DIAG), or start with --allow-unauthenticated", "url", l.url)
	case err != nil:
		log.Error("clients of this listener are refused: it can't be looked up who they are; see --allow-unauthenticated", "url", l.url, "err", err)
	case socket.Cgroup == 0 && k.ours != nil:
		log.Error("clients of this listener are refused: the kernel can't tell whether they are in containers (it needs CONFIG_SOCK_CGROUP_DATA); see --allow-containers", "url", l.url)
	}
}
