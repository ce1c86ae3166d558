package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/api"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/sys/sockdiag"
)

// unixClient is the process that has opened a connection to the socket, as the kernel knows it (SO_PEERCRED, unix(7)). The mode
// of the socket is what lets it in.
func unixClient(conn net.Conn) *api.Client {
	credentials, err := credentialsOf(conn)
	if err != nil {
		return &api.Client{Refused: fmt.Sprintf("read the client's credentials: %v", err)}
	}
	return &api.Client{
		Key: userKey(credentials.Uid),
		Who: []slog.Attr{slog.Uint64(logkey.UID, uint64(credentials.Uid)), slog.Int(logkey.PID, int(credentials.Pid))},
	}
}

func credentialsOf(conn net.Conn) (*unix.Ucred, error) {
	return getOption(conn, func(fd int) (*unix.Ucred, error) { return unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED) })
}

// getOption calls a function with the socket of a connection.
func getOption[T any](conn net.Conn, get func(fd int) (T, error)) (value T, err error) {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return value, errors.New("the connection has no socket")
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return value, err
	}
	failed := raw.Control(func(fd uintptr) { value, err = get(int(fd)) })
	return value, errors.Join(failed, err)
}

func userKey(uid uint32) string { return fmt.Sprintf("user %d", uid) }

// tcpClient is identified by the address at the other end.
func tcpClient(conn net.Conn) *api.Client {
	from := addressOf(conn.RemoteAddr())
	return &api.Client{TCP: true, Key: from.Addr().String(), Who: []slog.Attr{slog.String(logkey.Address, from.String())}}
}

// countedClient is tcpClient; on loopback, where all users of the node have one address, connections count by user. What a client may
// do its certificate decides.
func countedClient(conn net.Conn) *api.Client {
	c := tcpClient(conn)
	if from := addressOf(conn.RemoteAddr()); from.Addr().IsLoopback() && established(conn) {
		socket, err := lookup(from, addressOf(conn.LocalAddr()))
		if err == nil && socket.State == sockdiag.Established && socket.Inode != 0 && established(conn) {
			c.Key, c.Who = userKey(socket.UID), append(c.Who, slog.Uint64(logkey.UID, uint64(socket.UID)))
		}
	}
	return c
}

func addressOf(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return netip.AddrPortFrom(tcp.AddrPort().Addr().Unmap(), tcp.AddrPort().Port())
	}
	return netip.AddrPort{}
}

// containers identifies the groups of containers.
type containers interface {
	// Holds reports whether the cgroup with an id is one of a container's, or below one.
	Holds(cgroup uint64) (bool, error)
	// CgroupID returns the id of the cgroup at a path in the hierarchy.
	CgroupID(path string) (uint64, error)
}

// loopbackClients identifies the clients on loopback, where every process of the node can connect.
type loopbackClients struct {
	users []uint32   // that may send requests
	ours  containers // which may not; nil if they may
}

const closedBefore = "your end of the connection was closed before it could be looked up whose it is"

// identify looks up the owner of the socket at the other end. It is done when the connection is new, once for all its requests.
//
// The look-up goes by addresses, which others can have a moment later: a connection that was reset stays acceptable, and the next socket
// with its port may be root's. So our own end is looked at last. It is established: then it has been since before the look-up, and
// while it is, no second connection has the same addresses.
func (k loopbackClients) identify(conn net.Conn) *api.Client {
	client := tcpClient(conn)
	if established(conn) { // a client that is gone cannot make the server search for it
		socket, err := lookup(addressOf(conn.RemoteAddr()), addressOf(conn.LocalAddr()))
		if known := k.known(*client, socket, err); established(conn) {
			return known
		}
	}
	client.Refused = closedBefore
	return client
}

// known returns c with what follows from a look-up.
func (k loopbackClients) known(c api.Client, socket sockdiag.Socket, err error) *api.Client {
	switch {
	case errors.Is(err, sockdiag.ErrNone):
		c.Refused = "client socket not found on this node"
		return &c
	case err != nil:
		c.Refused = fmt.Sprintf("find the owner of the client's socket: %v", err)
		return &c
	case socket.State != sockdiag.Established || socket.Inode == 0:
		// The kernel shows user 0 as the owner of a closed socket.
		c.Refused = closedBefore
		return &c
	}
	c.Key = userKey(socket.UID)
	c.Who = append(c.Who, slog.Uint64(logkey.UID, uint64(socket.UID)))
	switch {
	case !slices.Contains(k.users, socket.UID):
		c.Refused = fmt.Sprintf("user %d may not use this server over TCP; --allow-user would allow it, which grants root on this node", socket.UID)
	case k.ours != nil:
		c.Refused = k.inContainer(socket)
	}
	return &c
}

// inContainer returns why a client with a socket is refused, or nothing.
func (k loopbackClients) inContainer(socket sockdiag.Socket) string {
	have, may, err := []uint64{socket.Cgroup}, []uint64(nil), error(nil)
	if socket.Cgroup == 0 { // the kernel does not show in which group it was created: then its holders count
		have, may, err = sockdiag.Holders(socket.Inode, k.ours.CgroupID)
	}
	if err == nil && len(have) == 0 {
		err = errors.New("no process has your socket")
	}
	for _, group := range slices.Concat(have, may) {
		ours, failed := k.ours.Holds(group)
		if ours {
			return "processes in containers of this server may not use it: --allow-containers would allow it"
		}
		err = errors.Join(err, failed)
	}
	if err != nil {
		return fmt.Sprintf("the server cannot find out whether you are in a container: %v", err)
	}
	return ""
}

// lookup asks the kernel for the socket at peer that is connected to own. Without the modules for that it reads the table of all sockets.
func lookup(peer, own netip.AddrPort) (sockdiag.Socket, error) {
	socket, err := sockdiag.Lookup(peer, own)
	if err == nil {
		return socket, nil
	}
	if errors.Is(err, sockdiag.ErrNone) { // that is also the answer without modules: is there none, or not even our own?
		if _, failed := sockdiag.Lookup(own, peer); failed == nil {
			return socket, err
		}
	}
	return sockdiag.Scan(peer, own)
}

// established reports whether neither end of a connection has been closed.
func established(conn net.Conn) bool {
	info, err := getOption(conn, func(fd int) (*unix.TCPInfo, error) {
		return unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	return err == nil && info.State == sockdiag.Established
}
