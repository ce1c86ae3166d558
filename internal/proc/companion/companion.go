// Package companion is the keeper's side of package keeper: it answers one daemon after another and remembers what the next one must know.
package companion

import (
	"errors"
	"io"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/keeper"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// Companion is the tie of a keeper to the daemon.
type Companion struct {
	name     string
	commands chan wire.Message
	pidfd    int

	mu     sync.Mutex     // one message at a time, and protects what follows
	socket int            // to the present daemon, or -1
	ready  []wire.Message // for the next daemon: Ready, and the last Status
	status *wire.Message
}

// Begin takes the descriptors of keeper.Start and returns the configuration. name is that of the keeper.
func Begin(name string) (*Companion, wire.Message, error) {
	for fd := keeper.ProgramFD; fd < keeper.FirstFD; fd++ {
		unix.CloseOnExec(fd)
	}
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, wire.Message{}, os.NewSyscallError("pidfd_open", err)
	}
	c := &Companion{name: name, commands: make(chan wire.Message), pidfd: pidfd, socket: keeper.ControlFD}
	run, err := wire.Receive(keeper.ControlFD)
	if err == nil && run.Kind != keeper.Run {
		run.Close()
		err = errors.New("the first message is no configuration")
	}
	if err != nil {
		return nil, wire.Message{}, err
	}
	c.hello(keeper.ControlFD)
	go c.listen()
	return c, run, nil
}

// Commands yields the messages of daemons, Stop among them. It is closed when no daemon can come any more.
func (c *Companion) Commands() <-chan wire.Message { return c.commands }

// Ready reports that the keeper does its work.
func (c *Companion) Ready(fields ...string) {
	c.tell(wire.Message{Kind: keeper.Ready, Fields: fields}, func(m wire.Message) { c.ready = []wire.Message{m} })
}

// Failed reports that the keeper cannot do its work, and why. The caller ends then.
func (c *Companion) Failed(fields ...string) {
	c.tell(wire.Message{Kind: keeper.Failed, Fields: fields}, func(wire.Message) {})
}

// Status reports the state of the work.
func (c *Companion) Status(fields ...string) {
	c.tell(wire.Message{Kind: keeper.Status, Fields: fields}, func(m wire.Message) { c.status = &m })
}

// tell sends a message and remembers it. A daemon that does not read loses it, and is told the next one.
func (c *Companion) tell(m wire.Message, remember func(wire.Message)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	remember(m)
	c.send(m)
}

// send is for a socket that may be gone or full; c.mu is held.
func (c *Companion) send(m wire.Message) {
	if c.socket >= 0 {
		_ = wire.Send(c.socket, m)
	}
}

// hello begins with a daemon. Hello is the first message that it gets, the latest state follows.
func (c *Companion) hello(socket int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.socket = socket
	_ = unix.SetNonblock(c.socket, false)
	_ = unix.SetsockoptTimeval(c.socket, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 1}) // a stopped daemon holds up nothing
	c.send(wire.Message{Kind: keeper.Hello, Fields: []string{strconv.Itoa(keeper.Version)}, Files: []int{c.pidfd}})
	for _, m := range c.ready {
		c.send(m)
	}
	if c.status != nil {
		c.send(*c.status)
	}
}

// listen receives from one daemon after another.
func (c *Companion) listen() {
	defer close(c.commands)
	for {
		m, err := wire.Receive(c.socket)
		switch {
		case err == nil:
			c.commands <- m
		case errors.Is(err, io.EOF), !errors.Is(err, unix.EAGAIN):
			if !c.next() {
				return
			}
		}
	}
}

// next waits for another daemon; false if none can come.
func (c *Companion) next() bool {
	c.mu.Lock()
	unix.Close(c.socket)
	c.socket = -1
	c.mu.Unlock()
	for {
		socket, _, err := unix.Accept4(keeper.SocketFD, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return false
		}
		peer, err := unix.GetsockoptUcred(socket, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil || peer.Uid != 0 {
			unix.Close(socket)
			continue
		}
		c.hello(socket)
		return true
	}
}

// Record writes how the keeper ended for a daemon that comes later: whole, or not at all.
func (c *Companion) Record(fields ...string) error {
	name := keeper.RecordName(c.name)
	fd, err := unix.Openat(keeper.RecordFD, name+".new", unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	file := os.NewFile(uintptr(fd), name)
	_, err = file.Write(wire.Message{Kind: keeper.Stop, Fields: fields}.Encode())
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return os.NewSyscallError("renameat", unix.Renameat(keeper.RecordFD, name+".new", keeper.RecordFD, name))
}
