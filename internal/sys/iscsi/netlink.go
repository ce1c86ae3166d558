package iscsi

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// Messages to and from the kernel: enum iscsi_uevent_e.
const (
	msgCreateSession  = 11
	msgDestroySession = 12
	msgCreateConn     = 13
	msgDestroyConn    = 14
	msgBind           = 15
	msgSetParam       = 16
	msgStart          = 17
	msgStop           = 18
	msgSend           = 19
	eventReceived     = 101
	eventConnError    = 102
	eventFault        = 103 // as an answer
	eventDestroyed    = 104
)

// What a message consists of: struct nlmsghdr; struct iscsi_uevent, of which we need the type, the error, the handle of
// the transport, the arguments and the result; then what is sent along.
const (
	nlHeaderSize  = unix.NLMSG_HDRLEN
	ueventSize    = 56
	atError       = 4
	atHandle      = 8
	atArguments   = 16
	argumentsSize = 24
	atResult      = atArguments + argumentsSize
)

// kernel is the way to the kernel's initiator. Each request has a socket of its own, on which nothing but its reply can
// arrive.
type kernel struct {
	failpoint failpoint.Hook
	handle    uint64 // of the transport: iscsi_tcp
	port      uint32 // from which requests come, or 0 for any
}

// transport is what the kernel tells of iscsi_tcp.
const transport = "/sys/class/iscsi_transport/tcp"

// openKernel finds the transport iscsi_tcp.
func openKernel(g failpoint.Hook) (kernel, error) {
	text, err := os.ReadFile(transport + "/handle")
	if err != nil {
		return kernel{}, fail(Unsupported, "the kernel has no iSCSI initiator (module iscsi_tcp): %w", err)
	}
	handle, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return kernel{}, fmt.Errorf("read the handle of iscsi_tcp: %w", err)
	}
	return kernel{failpoint: g, handle: handle}, nil
}

// socket opens a netlink socket at a port, or at any if that is 0. One with a group gets the events of all sessions.
func socket(flags int, port, group uint32) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|flags, unix.NETLINK_ISCSI)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: port, Groups: group}); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

// arguments are the fields of a request in their order, each a uint16, uint32 or uint64 where C aligns it.
func arguments(fields ...any) (a [argumentsSize]byte) {
	at := 0
	for _, f := range fields {
		switch f := f.(type) {
		case uint16:
			binary.NativeEndian.PutUint16(a[at:], f)
			at += 2
		case uint32:
			binary.NativeEndian.PutUint32(a[at:], f)
			at += 4
		case uint64:
			at = (at + 7) &^ 7
			binary.NativeEndian.PutUint64(a[at:], f)
			at += 8
		}
	}
	return a
}

// result is what the kernel answers, by the meaning that the request gives it.
type result struct{ first, second uint32 }

// do sends a request and returns its result. The kernel does what is asked before send returns.
func (k kernel) do(act string, kind uint16, args [argumentsSize]byte, extra []byte) (r result, err error) {
	err = k.failpoint.Do(act, func() error {
		r, err = k.request(kind, args, extra)
		return err
	})
	if err != nil {
		return r, fmt.Errorf("%s: %w", act, err)
	}
	return r, nil
}

func (k kernel) request(kind uint16, args [argumentsSize]byte, extra []byte) (result, error) {
	fd, err := socket(0, k.port, 0)
	if err != nil {
		return result{}, err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, k.message(kind, args, extra), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return result{}, os.NewSyscallError("sendto", err)
	}
	reply := make([]byte, 4096)
	n, from, err := unix.Recvfrom(fd, reply, unix.MSG_DONTWAIT)
	if err != nil {
		return result{}, os.NewSyscallError("recvfrom", err)
	}
	if !fromKernel(from) {
		return result{}, errors.New("the answer is not the kernel's")
	}
	return parseResult(kind, reply[:n])
}

func (k kernel) message(kind uint16, args [argumentsSize]byte, extra []byte) []byte {
	m := make([]byte, nlHeaderSize+ueventSize, nlHeaderSize+ueventSize+len(extra))
	binary.NativeEndian.PutUint32(m, uint32(cap(m)))
	binary.NativeEndian.PutUint16(m[4:], kind)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST)
	event := m[nlHeaderSize:]
	binary.NativeEndian.PutUint32(event, uint32(kind))
	binary.NativeEndian.PutUint64(event[atHandle:], k.handle)
	copy(event[atArguments:], args[:])
	return append(m, extra...)
}

func parseResult(kind uint16, m []byte) (result, error) {
	if len(m) < nlHeaderSize+ueventSize {
		return result{}, fmt.Errorf("the kernel answers with %d bytes", len(m))
	}
	event := m[nlHeaderSize:]
	if got := binary.NativeEndian.Uint16(m[4:]); got != kind {
		return result{}, fmt.Errorf("the kernel answers %d to %d", got, kind)
	}
	if binary.NativeEndian.Uint32(event) == eventFault {
		return result{}, unix.Errno(-int32(binary.NativeEndian.Uint32(event[atError:])))
	}
	r := result{binary.NativeEndian.Uint32(event[atResult:]), binary.NativeEndian.Uint32(event[atResult+4:])}
	if code := int32(r.first); code < 0 && kind != msgCreateSession && kind != msgCreateConn {
		return r, unix.Errno(-code)
	}
	return r, nil
}

func fromKernel(from unix.Sockaddr) bool {
	a, ok := from.(*unix.SockaddrNetlink)
	return ok && a.Pid == 0
}

// connection is a session in the kernel with its one connection.
type connection struct {
	kernel
	session uint32
	host    uint32 // number of its SCSI host
}

// theConn is the number of a session's one connection.
const theConn = 0

// create makes a session. Its commands are numbered from 1, as our login tells the target. The port of its owner is free
// unless another session is made at this moment; nothing announces the end of that.
func (k kernel) create(ctx context.Context, o owner, maxCommands int) (connection, error) {
	const tries, interval = 2000, 5 * time.Millisecond
	const queueDepth = 32 // of a LUN until it is set
	own := k
	own.port = o.port
	for n := 1; ; n++ {
		r, err := own.do("iscsi create session", msgCreateSession, arguments(uint32(1), uint16(maxCommands), uint16(queueDepth)), nil)
		if !errors.Is(err, unix.EADDRINUSE) || n == tries {
			return connection{k, r.first, r.second}, err
		}
		select {
		case <-time.After(interval):
		case <-ctx.Done():
			return connection{}, context.Cause(ctx)
		}
	}
}

func (c connection) destroy() error {
	_, err := c.do("iscsi destroy session", msgDestroySession, arguments(c.session), nil)
	return gone(err)
}

func (c connection) createConn() error {
	_, err := c.do("iscsi create connection", msgCreateConn, arguments(c.session, uint32(theConn)), nil)
	return err
}

func (c connection) destroyConn() error {
	_, err := c.do("iscsi destroy connection", msgDestroyConn, arguments(c.session, uint32(theConn)), nil)
	return gone(err)
}

// bind gives the kernel the connection to the target. It keeps a reference of its own.
func (c connection) bind(tcp *net.TCPConn) error {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		_, inner = c.do("iscsi bind connection", msgBind, arguments(c.session, uint32(theConn), uint64(fd), uint32(1)), nil)
	})
	return errors.Join(err, inner)
}

func (c connection) start() error {
	_, err := c.do("iscsi start connection", msgStart, arguments(c.session, uint32(theConn)), nil)
	return err
}

// How to stop a connection.
const (
	stopForGood = 1 // STOP_CONN_TERM
	stopAWhile  = 3 // STOP_CONN_RECOVER: I/O waits for a new connection
)

// end stops a connection for good. It is stopped for a while first: that alone keeps out the kernel's own cleaning up, which
// begins when the target hangs up, and which at the same time as the other stop frees the socket twice (an oops of Linux 6.1).
func (c connection) end() error {
	if err := c.stop(stopAWhile); err != nil {
		return err
	}
	return c.stop(stopForGood)
}

func (c connection) stop(how uint32) error {
	_, err := c.do("iscsi stop connection", msgStop, arguments(c.session, uint32(theConn), uint64(0), how), nil)
	return gone(err)
}

func (c connection) send(p pdu) error {
	args := arguments(c.session, uint32(theConn), uint32(headerSize), uint32(len(p.data)))
	_, err := c.do("iscsi send", msgSend, args, append(p.header[:], p.data...))
	return err
}

// gone turns the error of a request about something that does not exist any more into success.
func gone(err error) error {
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// Parameters of sessions and connections: enum iscsi_param.
const (
	paramMaxReceive     = 0
	paramMaxSend        = 1
	paramHeaderDigest   = 2
	paramDataDigest     = 3
	paramInitialR2T     = 4
	paramMaxR2T         = 5
	paramImmediate      = 6
	paramFirstBurst     = 7
	paramMaxBurst       = 8
	paramDataPDUInOrder = 9
	paramDataSeqInOrder = 10
	paramErrorRecovery  = 11
	paramExpStatSN      = 14
	paramGroup          = 16
	paramPersistentHost = 17
	paramPersistentPort = 18
	paramReplacement    = 19
	paramPingTimeout    = 30 // seconds that the target has to answer a ping
	paramPingAfter      = 31 // seconds of silence until it is asked
	paramInterface      = 32
	paramInitiator      = 34
)

type param struct {
	number uint32
	value  string
}

// set sets parameters; the connection must be bound.
func (c connection) set(params []param) error {
	for _, p := range params {
		value := append([]byte(p.value), 0)
		args := arguments(c.session, uint32(theConn), p.number, uint32(len(value)))
		if _, err := c.do("iscsi set parameter", msgSetParam, args, value); err != nil {
			return fmt.Errorf("parameter %d = %q: %w", p.number, p.value, err)
		}
	}
	return nil
}
