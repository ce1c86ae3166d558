// Package nbdserve answers the kernel's requests for a read-only network block device: the transmission phase of the NBD protocol with
// simple replies, as nbd.ko speaks it over a socket that it was given by netlink (no handshake).
//
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, section "Transmission".
package nbdserve

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Reader is the content of the device. ReadAt fills p; an error becomes EIO for the kernel. It is called concurrently.
type Reader interface {
	ReadAt(ctx context.Context, p []byte, offset int64) error
}

const (
	requestMagic = 0x25609513
	replyMagic   = 0x67446698
	requestSize  = 28
	replySize    = 16

	commandRead       = 0
	commandWrite      = 1
	commandDisconnect = 2
	commandFlush      = 3
	commandTrim       = 4
	commandZeroes     = 6

	errPermission = 1  // EPERM
	errIO         = 5  // EIO
	errInvalid    = 22 // EINVAL
)

// Longest is how much one request of the kernel asks for at most, in bytes: max_hw_sectors_kb of nbd.ko. Unless root raises max_sectors_kb of
// the device, its requests are far shorter.
const Longest = 32 << 20

// Limits bounds what the requests of one device use.
type Limits struct {
	Requests int   // under way at a time; more wait in the socket
	Bytes    int64 // in their answers, 0 for any; a longer request waits for all others and then exceeds it
}

// Serve answers the requests that come over a socket until that ends, the kernel disconnects, or ctx is over. A request that the kernel
// gives up, because its time is over, is read to its end and its answer is dropped with the socket. Serve returns when nothing of it runs
// any more; its error is nil if the kernel ended it.
func Serve(ctx context.Context, socket io.ReadWriteCloser, content Reader, limits Limits) error {
	ctx, cancel := context.WithCancel(ctx)
	c := &conn{socket: socket, content: content, places: make(chan struct{}, limits.Requests), memory: newBudget(limits.Bytes)}
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	err := c.loop(ctx)
	stop()
	socket.Close()
	cancel()
	c.tasks.Wait()
	if errors.Is(err, errDisconnected) {
		return nil
	}
	return err
}

var errDisconnected = errors.New("the kernel disconnected")

type conn struct {
	socket  io.ReadWriteCloser
	content Reader
	places  chan struct{}
	memory  *budget
	tasks   sync.WaitGroup

	mu sync.Mutex // one answer at a time
}

// request is struct nbd_request of linux/nbd.h.
type request struct {
	command uint16
	cookie  uint64
	offset  uint64
	length  uint32
}

func (c *conn) loop(ctx context.Context) error {
	var header [requestSize]byte
	for {
		if _, err := io.ReadFull(c.socket, header[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if magic := binary.BigEndian.Uint32(header[:]); magic != requestMagic {
			return fmt.Errorf("a request begins with %#x, not %#x", magic, uint32(requestMagic))
		}
		r := request{
			command: binary.BigEndian.Uint16(header[6:]),
			cookie:  binary.BigEndian.Uint64(header[8:]),
			offset:  binary.BigEndian.Uint64(header[16:]),
			length:  binary.BigEndian.Uint32(header[24:]),
		}
		if err := c.take(ctx, r); err != nil {
			return err
		}
	}
}

// take begins to answer a request.
func (c *conn) take(ctx context.Context, r request) error {
	switch r.command {
	case commandRead:
		return c.read(ctx, r)
	case commandDisconnect:
		return errDisconnected
	case commandWrite: // its data follows; a read-only device gets none
		if _, err := io.CopyN(io.Discard, c.socket, int64(r.length)); err != nil {
			return err
		}
		return c.reply(r, errPermission, nil)
	case commandTrim, commandZeroes:
		return c.reply(r, errPermission, nil)
	case commandFlush:
		return c.reply(r, 0, nil)
	}
	return c.reply(r, errInvalid, nil)
}

// read answers a read in a goroutine, when there is a place and memory for it.
func (c *conn) read(ctx context.Context, r request) error {
	if r.length > Longest || r.offset > 1<<62 {
		return c.reply(r, errInvalid, nil)
	}
	select {
	case c.places <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	share := min(int64(r.length), c.memory.all)
	if !c.memory.take(ctx, share) {
		<-c.places
		return context.Cause(ctx)
	}
	c.tasks.Go(func() {
		defer func() { c.memory.give(share); <-c.places }()
		data := make([]byte, replySize+int(r.length))
		if err := c.content.ReadAt(ctx, data[replySize:], int64(r.offset)); err != nil {
			if ctx.Err() != nil {
				return // nothing is wrong with the content: the kernel asks again over another socket
			}
			_ = c.reply(r, errIO, nil) // a socket that fails here ends the loop, too
			return
		}
		_ = c.reply(r, 0, data)
	})
	return nil
}

// reply sends an answer; data begins with room for its header.
func (c *conn) reply(r request, code uint32, data []byte) error {
	if data == nil {
		data = make([]byte, replySize)
	}
	binary.BigEndian.PutUint32(data, replyMagic)
	binary.BigEndian.PutUint32(data[4:], code)
	binary.BigEndian.PutUint64(data[8:], r.cookie)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.socket.Write(data)
	return err
}

// budget is an amount of memory that requests share.
type budget struct {
	all  int64
	mu   sync.Mutex
	free int64
	more *sync.Cond
}

func newBudget(n int64) *budget {
	b := &budget{all: n, free: n}
	b.more = sync.NewCond(&b.mu)
	return b
}

// take waits until so much is free; false if ctx ends before.
func (b *budget) take(ctx context.Context, n int64) bool {
	defer context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.more.Broadcast()
	})()
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.free < n {
		if ctx.Err() != nil {
			return false
		}
		b.more.Wait()
	}
	b.free -= n
	return true
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
	b.more.Broadcast()
}
