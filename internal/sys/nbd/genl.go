package nbd

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// genl is a socket for generic netlink (netlink(7)), with one request at a time.
type genl struct {
	fd     int
	family uint16
}

// errNoFamily says that the kernel has no nbd, or has not loaded it.
var errNoFamily = errors.New("the kernel has no generic netlink family nbd")

// dial opens a socket and looks up the family.
func dial() (*genl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	g := &genl{fd: fd, family: unix.GENL_ID_CTRL}
	answer, err := g.ask(unix.CTRL_CMD_GETFAMILY, text(unix.CTRL_ATTR_FAMILY_NAME, "nbd"))
	if err != nil {
		g.close()
		if errors.Is(err, unix.ENOENT) {
			err = errNoFamily
		}
		return nil, err
	}
	id := answer[unix.CTRL_ATTR_FAMILY_ID]
	if len(id) < 2 {
		g.close()
		return nil, errNoFamily
	}
	g.family = binary.NativeEndian.Uint16(id)
	return g, nil
}

func (g *genl) close() { unix.Close(g.fd) }

// Attributes are encoded as netlink(7) says: length, type, value, padded to four bytes.

func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, -len(b)&3)...)
}

func text(kind uint16, s string) []byte { return attribute(kind, append([]byte(s), 0)) }

func number32(kind uint16, n uint32) []byte {
	return attribute(kind, binary.NativeEndian.AppendUint32(nil, n))
}

func number64(kind uint16, n uint64) []byte {
	return attribute(kind, binary.NativeEndian.AppendUint64(nil, n))
}

func nested(kind uint16, values ...[]byte) []byte {
	var all []byte
	for _, v := range values {
		all = append(all, v...)
	}
	return attribute(kind|unix.NLA_F_NESTED, all)
}

// ask sends a command and returns the attributes of its answer, if it has one, when the kernel has acknowledged it.
func (g *genl) ask(command uint8, attributes ...[]byte) (map[uint16][]byte, error) {
	body := []byte{command, 1, 0, 0} // struct genlmsghdr
	for _, a := range attributes {
		body = append(body, a...)
	}
	m := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	m = binary.NativeEndian.AppendUint16(m, g.family)
	m = binary.NativeEndian.AppendUint16(m, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	m = append(m, make([]byte, 8)...) // sequence and port: the socket is used for one request at a time
	if err := unix.Sendto(g.fd, append(m, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	return g.answer()
}

// answer reads up to the acknowledgement.
func (g *genl) answer() (map[uint16][]byte, error) {
	found := map[uint16][]byte{}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(g.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		for rest := buf[:n]; len(rest) >= unix.NLMSG_HDRLEN; {
			length := int(binary.NativeEndian.Uint32(rest))
			if length < unix.NLMSG_HDRLEN || length > len(rest) {
				return nil, errors.New("malformed netlink message")
			}
			body := rest[unix.NLMSG_HDRLEN:length]
			if kind := binary.NativeEndian.Uint16(rest[4:]); kind == unix.NLMSG_ERROR {
				return found, acknowledged(body)
			}
			if len(body) >= unix.GENL_HDRLEN {
				parse(body[unix.GENL_HDRLEN:], found)
			}
			rest = rest[min(len(rest), (length+3)&^3):]
		}
	}
}

// acknowledged returns the error in an NLMSG_ERROR; 0 is success.
func acknowledged(body []byte) error {
	if len(body) < 4 {
		return errors.New("malformed netlink message")
	}
	if errno := int32(binary.NativeEndian.Uint32(body)); errno != 0 {
		return unix.Errno(-errno)
	}
	return nil
}

// parse adds attributes to found. Values are copied.
func parse(b []byte, found map[uint16][]byte) {
	for len(b) >= 4 {
		length := int(binary.NativeEndian.Uint16(b))
		if length < 4 || length > len(b) {
			return
		}
		found[binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = append([]byte(nil), b[4:length]...)
		b = b[min(len(b), (length+3)&^3):]
	}
}
