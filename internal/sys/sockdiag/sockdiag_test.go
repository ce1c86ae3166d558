package sockdiag

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
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

func BenchmarkLookup(b *testing.B) {
	nobody := netip.MustParseAddrPort("127.0.0.1:1")
	for b.Loop() {
		_, _ = Lookup(nobody, nobody)
	}
}
