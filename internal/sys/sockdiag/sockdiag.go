// Package sockdiag asks the kernel whose TCP socket it is that has an address (sock_diag(7)).
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Established is the state of a socket that is connected and that neither side has closed (tcp(7)).
const Established = 1

// Socket is what the kernel knows about a TCP socket.
type Socket struct {
	State  uint8  // Established or another of the kernel's numbers (include/net/tcp_states.h)
	UID    uint32 // who made it, in the daemon's user namespace; of one that no process has open any more it may be 0
	Inode  uint32 // of the socket; 0 if no process has it open any more
	Cgroup uint64 // the id of the cgroup that it was made in; 0 if the kernel does not tell
}

// ErrNone says that there is no such socket in the network namespace of the caller.
var ErrNone = errors.New("no such socket")

// Lookup returns the TCP socket that is bound to local and connected to remote. Where none is connected it may return one that
// listens on local. Addresses of IPv4 may be given in either form. It does not wait.
func Lookup(local, remote netip.AddrPort) (Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return Socket{}, fmt.Errorf("open sock_diag: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, request(local, remote), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return Socket{}, fmt.Errorf("ask sock_diag: %w", err)
	}
	answer := make([]byte, os.Getpagesize())
	n, _, err := unix.Recvfrom(fd, answer, unix.MSG_DONTWAIT) // the kernel answers while it is asked
	if err != nil {
		return Socket{}, fmt.Errorf("read sock_diag: %w", err)
	}
	return parse(answer[:n])
}

// The layout of linux/netlink.h and linux/inet_diag.h.
const (
	headerLen      = unix.SizeofNlMsghdr
	idLen          = 48             // struct inet_diag_sockid
	requestLen     = 8 + idLen      // struct inet_diag_req_v2
	messageLen     = 4 + idLen + 20 // struct inet_diag_msg
	attrCgroup     = 21             // INET_DIAG_CGROUP_ID
	byFamily       = 20             // SOCK_DIAG_BY_FAMILY
	allStates      = ^uint32(0)
	noCookie       = ^uint64(0)
	stateAt        = headerLen + 1
	uidAt, inodeAt = headerLen + 4 + idLen + 12, headerLen + 4 + idLen + 16
)

// request asks for one socket, as its owner sees it. Numbers are in the byte order of the machine, addresses and ports in that
// of the network.
func request(local, remote netip.AddrPort) []byte {
	family, src, dst := byte(unix.AF_INET6), local.Addr().AsSlice(), remote.Addr().AsSlice()
	if local.Addr().Unmap().Is4() {
		from, to := local.Addr().Unmap().As4(), remote.Addr().Unmap().As4()
		family, src, dst = unix.AF_INET, from[:], to[:]
	}
	b := make([]byte, headerLen, headerLen+requestLen)
	order := binary.NativeEndian
	order.PutUint32(b[0:], headerLen+requestLen)
	order.PutUint16(b[4:], byFamily)
	order.PutUint16(b[6:], unix.NLM_F_REQUEST)
	b = append(b, family, unix.IPPROTO_TCP, 0, 0)
	b = order.AppendUint32(b, allStates)
	b = binary.BigEndian.AppendUint16(b, local.Port())
	b = binary.BigEndian.AppendUint16(b, remote.Port())
	b = append(b, src...)
	b = append(b, make([]byte, 16-len(src))...)
	b = append(b, dst...)
	b = append(b, make([]byte, 16-len(dst))...)
	b = order.AppendUint32(b, 0) // any interface
	return order.AppendUint64(b, noCookie)
}

// parse reads the one message of an answer.
func parse(b []byte) (Socket, error) {
	order := binary.NativeEndian
	if len(b) < headerLen+4 || order.Uint32(b) > uint32(len(b)) || order.Uint32(b) < headerLen+4 {
		return Socket{}, errors.New("read sock_diag: the answer is too short")
	}
	b = b[:order.Uint32(b)]
	switch kind := order.Uint16(b[4:]); {
	case kind == unix.NLMSG_ERROR:
		return Socket{}, refusal(unix.Errno(-int32(order.Uint32(b[headerLen:]))))
	case kind != byFamily || len(b) < headerLen+messageLen:
		return Socket{}, fmt.Errorf("read sock_diag: an answer of type %d and %d bytes", kind, len(b))
	}
	s := Socket{State: b[stateAt], UID: order.Uint32(b[uidAt:]), Inode: order.Uint32(b[inodeAt:])}
	s.Cgroup = cgroupIn(b[headerLen+messageLen:])
	return s, nil
}

// refusal is what an error of the kernel means. ENOENT is what it answers for no socket, but also for no module.
func refusal(errno unix.Errno) error {
	if errno == unix.ENOENT {
		return ErrNone
	}
	return fmt.Errorf("ask sock_diag: %w", errno)
}

// cgroupIn returns the cgroup's id among attributes, or 0.
func cgroupIn(attrs []byte) uint64 {
	order := binary.NativeEndian
	const head = unix.SizeofNlAttr
	for len(attrs) >= head {
		size := int(order.Uint16(attrs))
		if size < head || size > len(attrs) {
			return 0
		}
		if order.Uint16(attrs[2:]) == attrCgroup && size >= head+8 {
			return order.Uint64(attrs[head:])
		}
		attrs = attrs[min((size+3)&^3, len(attrs)):]
	}
	return 0
}
