package nbdserve_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/web/nbdserve"
)

// content is a Reader in memory.
type content struct {
	data []byte
	hold chan struct{}
	bad  int64 // reads at this offset fail
}

func (c *content) ReadAt(ctx context.Context, p []byte, offset int64) error {
	if c.hold != nil {
		select {
		case <-c.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if offset == c.bad || offset >= int64(len(c.data)) {
		return errors.New("no")
	}
	copy(p, c.data[offset:])
	return nil
}

// kernel is the other end of the socket.
type kernel struct {
	net.Conn
	t    *testing.T
	done chan error
}

func serve(t *testing.T, c *content, limits nbdserve.Limits) *kernel {
	t.Helper()
	ours, theirs := net.Pipe()
	k := &kernel{ours, t, make(chan error, 1)}
	go func() { k.done <- nbdserve.Serve(t.Context(), theirs, c, limits) }()
	t.Cleanup(func() { ours.Close() })
	return k
}

func (k *kernel) ask(command uint16, cookie, offset uint64, length uint32) {
	k.t.Helper()
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, command)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, offset)
	b = binary.BigEndian.AppendUint32(b, length)
	if _, err := k.Write(b); err != nil {
		k.t.Error(err)
	}
}

// answer returns the cookie and error of the next answer.
func (k *kernel) answer() (cookie uint64, code uint32) {
	k.t.Helper()
	b := make([]byte, 16)
	if _, err := io.ReadFull(k, b); err != nil {
		k.t.Fatal(err)
	}
	if magic := binary.BigEndian.Uint32(b); magic != 0x67446698 {
		k.t.Fatalf("an answer begins with %#x", magic)
	}
	return binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[4:])
}

func random(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(p)
	return p
}

func TestReads(t *testing.T) {
	t.Parallel()
	c := &content{data: random(8 << 20), bad: 4096}
	k := serve(t, c, nbdserve.Limits{Requests: 16, Bytes: 4 << 20})
	lengths := map[uint64]uint32{}
	for cookie := range uint64(50) {
		lengths[cookie] = uint32(cookie+1) * 4096
	}
	var asked sync.WaitGroup
	asked.Go(func() {
		for cookie, length := range lengths {
			k.ask(0, cookie, cookie*8192, length)
		}
	})
	for range lengths {
		cookie, code := k.answer()
		data := make([]byte, lengths[cookie])
		if _, err := io.ReadFull(k, data); err != nil || code != 0 {
			t.Fatalf("request %d: %d, %v", cookie, code, err)
		}
		if !bytes.Equal(data, c.data[cookie*8192:][:len(data)]) {
			t.Errorf("request %d got other bytes", cookie)
		}
	}
	asked.Wait()
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	k := serve(t, &content{data: random(1 << 20), bad: 4096}, nbdserve.Limits{Requests: 1})
	for _, c := range []struct {
		command uint16
		offset  uint64
		length  uint32
		data    int
		want    uint32
	}{
		{0, 4096, 4096, 0, 5},    // a read that fails
		{0, 0, 33 << 20, 0, 22},  // longer than allowed
		{0, 1 << 63, 512, 0, 22}, // beyond all devices
		{1, 0, 4096, 4096, 1},    // write
		{4, 0, 4096, 0, 1},       // trim
		{6, 0, 4096, 0, 1},       // write zeroes
		{3, 0, 0, 0, 0},          // flush
		{99, 0, 0, 0, 22},        // unknown
	} {
		k.ask(c.command, 7, c.offset, c.length)
		if c.data > 0 {
			if _, err := k.Write(make([]byte, c.data)); err != nil {
				t.Fatal(err)
			}
		}
		if cookie, code := k.answer(); cookie != 7 || code != c.want {
			t.Errorf("command %d: cookie %d, error %d, want %d", c.command, cookie, code, c.want)
		}
	}
	k.ask(2, 0, 0, 0)
	if err := <-k.done; err != nil {
		t.Errorf("disconnected: %v", err)
	}
}

// TestHangUp: when the kernel closes the socket, reads that wait are given up.
func TestHangUp(t *testing.T) {
	t.Parallel()
	k := serve(t, &content{data: random(1 << 20), hold: make(chan struct{}), bad: -1}, nbdserve.Limits{Requests: 4})
	k.ask(0, 1, 0, 4096)
	k.ask(0, 2, 0, 4096)
	k.Close()
	if err := <-k.done; err != nil {
		t.Errorf("hung up: %v", err)
	}
}

func TestGarbage(t *testing.T) {
	t.Parallel()
	k := serve(t, &content{}, nbdserve.Limits{Requests: 1})
	if _, err := k.Write(make([]byte, 28)); err != nil {
		t.Fatal(err)
	}
	if err := <-k.done; err == nil {
		t.Error("28 zeros were taken for a request")
	}
}

func FuzzRequests(f *testing.F) {
	f.Add([]byte("\x25\x60\x95\x13\x00\x00\x00\x00abcdefgh\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = nbdserve.Serve(context.Background(), theirs, &content{data: random(1 << 20), bad: -1}, nbdserve.Limits{Requests: 2})
		}()
		go func() { _, _ = io.Copy(io.Discard, ours) }()
		_, _ = ours.Write(stream)
		ours.Close()
		<-done
	})
}

// A keeper that ends must not fail the kernel's requests: they are sent again over another socket.
func TestNoErrorForTheKernelAtTheEnd(t *testing.T) {
	t.Parallel()
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		ours, theirs := net.Pipe()
		k := &kernel{ours, t, make(chan error, 1)}
		go func() {
			k.done <- nbdserve.Serve(ctx, theirs, &content{hold: make(chan struct{})}, nbdserve.Limits{Requests: 8, Bytes: 1 << 20})
		}()
		for n := range uint64(4) {
			k.ask(0, n, 0, 4096)
		}
		cancel()
		if n, _ := ours.Read(make([]byte, 16)); n != 0 {
			t.Fatal("a request got a reply")
		}
		<-k.done
	}
}
