package sockdiag

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// ErrSeveral is the error of two sockets that are connected alike.
var ErrSeveral = errors.New("several sockets have this address")

// Scan is Lookup for a kernel without sock_diag or its modules: it reads /proc/net/tcp and /proc/net/tcp6, which do not contain cgroups.
// It takes as long as reading all sockets of the network namespace.
func Scan(local, remote netip.AddrPort) (Socket, error) {
	found, err := Socket{}, ErrNone
	for _, name := range []string{"tcp", "tcp6"} {
		file, opened := os.Open("/proc/thread-self/net/" + name)
		if errors.Is(opened, fs.ErrNotExist) { // no IPv6
			continue
		}
		if opened != nil {
			return Socket{}, opened
		}
		found, err = scan(file, found, err, local, remote)
		_ = file.Close() // it was only read
		if err != nil && !errors.Is(err, ErrNone) {
			return Socket{}, err
		}
	}
	return found, err
}

// scan looks for a socket in a table, after others have been read; so far is their result. A connected socket comes before others.
func scan(table io.Reader, sofar Socket, none error, local, remote netip.AddrPort) (Socket, error) {
	lines := bufio.NewScanner(table)
	port := fmt.Appendf(nil, ":%04X ", local.Port())
	for lines.Scan() {
		if !bytes.Contains(lines.Bytes(), port) { // there may be many thousands
			continue
		}
		s, ok := parseLine(lines.Text(), local, remote)
		switch {
		case !ok, none == nil && (s == sofar || sofar.State == Established && s.State != Established):
		case none == nil && sofar.State == Established:
			return Socket{}, ErrSeveral
		default:
			sofar, none = s, nil
		}
	}
	if err := lines.Err(); err != nil {
		return Socket{}, fmt.Errorf("read /proc/net/tcp: %w", err)
	}
	return sofar, none
}

// parseLine returns the socket of a line if it is the one between two addresses (proc_pid_net(5)).
func parseLine(line string, local, remote netip.AddrPort) (s Socket, ok bool) {
	const number, from, to, state, uid, inode, count = 0, 1, 2, 3, 7, 9, 10
	fields := strings.Fields(line)
	if len(fields) < count || !strings.HasSuffix(fields[number], ":") || !same(fields[from], local) || !same(fields[to], remote) {
		return s, false
	}
	values := [3]uint64{}
	for i, f := range []struct {
		at, base, bits int
	}{{state, 16, 8}, {uid, 10, 32}, {inode, 10, 32}} {
		value, err := strconv.ParseUint(fields[f.at], f.base, f.bits)
		if err != nil {
			return s, false
		}
		values[i] = value
	}
	return Socket{State: uint8(values[0]), UID: uint32(values[1]), Inode: uint32(values[2])}, true
}

// same reports whether text is an address as these tables write it: each 32 bits in the byte order of the machine, then the port.
func same(text string, address netip.AddrPort) bool {
	host, port, _ := strings.Cut(text, ":")
	if number, err := strconv.ParseUint(port, 16, 16); err != nil || uint16(number) != address.Port() {
		return false
	}
	raw := make([]byte, 0, 16)
	for ; len(host) >= 8; host = host[8:] {
		word, err := strconv.ParseUint(host[:8], 16, 32)
		if err != nil {
			return false
		}
		raw = binary.NativeEndian.AppendUint32(raw, uint32(word))
	}
	got, ok := netip.AddrFromSlice(raw)
	return ok && host == "" && got.Unmap() == address.Addr().Unmap()
}
