package sockdiag

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// pair connects two sockets and returns the side of the client and that of the server.
func pair(t *testing.T, network, listenOn, dialTo string) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen(network, net.JoinHostPort(listenOn, "0"))
	if err != nil {
		t.Skipf("no %s here: %v", listenOn, err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	c, err := net.Dial("tcp", net.JoinHostPort(dialTo, port))
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.Close(), s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// peerOf looks up the socket at the other end of a connection.
func peerOf(c *net.TCPConn) (Socket, error) {
	return Lookup(addrPort(c.RemoteAddr()), addrPort(c.LocalAddr()))
}

func addrPort(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

func TestLookup(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, network, listen, dial string }{
		{"IPv4", "tcp4", "127.0.0.1", "127.0.0.1"},
		{"another loopback address", "tcp4", "127.1.2.3", "127.1.2.3"},
		{"IPv6", "tcp6", "::1", "::1"},
		{"IPv4 at a socket of IPv6", "tcp", "::", "127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client, server := pair(t, tt.network, tt.listen, tt.dial)
			got, err := peerOf(server)
			if err != nil {
				t.Fatal(err)
			}
			if got.State != Established || got.UID != uint32(os.Geteuid()) || got.Inode != inodeOf(t, client) {
				t.Errorf("got %+v, want uid %d and inode %d", got, os.Geteuid(), inodeOf(t, client))
			}
			table, err := Scan(addrPort(server.RemoteAddr()), addrPort(server.LocalAddr()))
			if got.Cgroup = 0; err != nil || table != got {
				t.Errorf("the table shows %+v, %v; want %+v", table, err, got)
			}
		})
	}
}

// inodeOf returns what the kernel calls a connection's own socket.
func inodeOf(t *testing.T, c syscall.Conn) uint32 {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return uint32(st.Ino)
}

// A socket that was closed while data was on its way has no owner: it looks like root's but for its state and inode.
func TestClosedSocketHasNoOwner(t *testing.T) {
	t.Parallel()
	client, server := pair(t, "tcp4", "127.0.0.1", "127.0.0.1")
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
	if _, err := io.ReadAll(server); err != nil { // it is closed now
		t.Fatal(err)
	}
	got, err := peerOf(server)
	if err != nil && !errors.Is(err, ErrNone) {
		t.Fatal(err)
	}
	if got.State == Established || got.Inode != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestNoSuchSocket(t *testing.T) {
	t.Parallel()
	nobody := netip.MustParseAddrPort("127.0.0.1:1")
	if got, err := Lookup(nobody, nobody); !errors.Is(err, ErrNone) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// Of two sockets that are connected alike neither is believed, and one that is connected comes before one that is not.
func TestScanOfSeveral(t *testing.T) {
	t.Parallel()
	const line = "   0: 0100007F:0001 0100007F:0002 %02X 00000000:00000000 00:00000000 00000000     7        0 %d 1 0 20 4 30 10 -1\n"
	from, to := netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")
	for _, tt := range []struct {
		name  string
		lines string
		inode uint32
		err   error
	}{
		{"none", "", 0, ErrNone},
		{"one", fmt.Sprintf(line, 1, 5), 5, nil},
		{"the same twice", fmt.Sprintf(line+line, 1, 5, 1, 5), 5, nil},
		{"two", fmt.Sprintf(line+line, 1, 5, 1, 6), 0, ErrSeveral},
		{"one that is about to connect", fmt.Sprintf(line+line, 2, 6, 1, 5), 5, nil},
		{"one that was closed", fmt.Sprintf(line+line, 1, 5, 4, 0), 5, nil},
	} {
		got, err := scan(strings.NewReader(tt.lines), Socket{}, ErrNone, from, to)
		if got.Inode != tt.inode || !errors.Is(err, tt.err) {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
	}
}

// The processes that have a socket are found, and no others.
func TestHolders(t *testing.T) {
	t.Parallel()
	client, _ := pair(t, "tcp4", "127.0.0.1", "127.0.0.1")
	asked := ""
	have, _, err := Holders(inodeOf(t, client), func(path string) (uint64, error) { asked = path; return 7, nil })
	own, _ := os.ReadFile("/proc/self/cgroup")
	if err != nil || len(have) != 1 || have[0] != 7 || !strings.Contains(string(own), "0::"+asked+"\n") {
		t.Errorf("%v, %v; asked for %q", have, err, asked)
	}
	if have, _, err := Holders(1<<31, func(string) (uint64, error) { return 7, nil }); err != nil || len(have) > 0 {
		t.Errorf("of no socket: %v, %v", have, err)
	}
}

// A listener is found by its own address: so the daemon learns at its start whether the kernel can be asked.
func TestListener(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got, err := Lookup(addrPort(l.Addr()), netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	if err != nil || got.State == Established || got.Inode != inodeOf(t, l.(*net.TCPListener)) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestCgroup(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	_, server := pair(t, "tcp4", "127.0.0.1", "127.0.0.1")
	got, err := peerOf(server)
	if err != nil || got.Cgroup == 0 {
		t.Errorf("got %+v, %v", got, err)
	}
}

// FuzzParse proves that no answer makes us read past its end.
func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add(request(netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parse(b) })
}

// FuzzScan proves that no table makes us read past its end, or find a socket at other addresses.
func FuzzScan(f *testing.F) {
	f.Add("   0: 0100007F:0001 0100007F:0002 01 00000000:00000000 00:00000000 00000000     7        0 5 1 0 20 4 30 10 -1\n")
	from, to := netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")
	f.Fuzz(func(t *testing.T, table string) {
		if _, err := scan(strings.NewReader(table), Socket{}, ErrNone, from, to); err == nil && !strings.Contains(table, ":0001 ") {
			t.Errorf("found one in %q", table)
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	nobody := netip.MustParseAddrPort("127.0.0.1:1")
	for b.Loop() {
		_, _ = Lookup(nobody, nobody)
	}
}
