// Package companion is the other side of package keeper: it answers one daemon after another and remembers what the next one must know.
// It stays free of package fmt.
package companion

import (
	"errors"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// Companion is the tie of this process to the daemon.
type Companion struct {
	name     string
	commands chan wire.Message
	pidfd    int

	mu     sync.Mutex                 // one message at a time, and protects what follows
	socket int                        // to the present daemon, or -1
	latest map[wire.Kind]wire.Message // for the next daemon
}

// Begin takes the descriptors of keeper.Start and returns the configuration. name is that of this process.
func Begin(name string) (*Companion, wire.Message, error) {
	for fd := wire.ProgramFD; fd < wire.FirstFD; fd++ {
		unix.CloseOnExec(fd)
	}
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, wire.Message{}, os.NewSyscallError("pidfd_open", err)
	}
	c := &Companion{name: name, commands: make(chan wire.Message), pidfd: pidfd, socket: wire.ControlFD, latest: map[wire.Kind]wire.Message{}}
	run, err := wire.Receive(wire.ControlFD)
	if err == nil && run.Kind != wire.Run {
		run.Close()
		err = errors.New("the first message is no configuration")
	}
	if err != nil {
		return nil, wire.Message{}, err
	}
	c.hello(wire.ControlFD)
	go c.listen()
	return c, run, nil
}

// Commands yields the messages of daemons, Stop among them. It is closed when no daemon can come any more.
func (c *Companion) Commands() <-chan wire.Message { return c.commands }

// Ready reports that this process does its work.
func (c *Companion) Ready(fields ...string) { c.tell(wire.Message{Kind: wire.Ready, Fields: fields}) }

// ReadyWith is Ready with a descriptor, which stays open for later daemons.
func (c *Companion) ReadyWith(file int, fields ...string) {
	c.tell(wire.Message{Kind: wire.Ready, Fields: fields, Files: []int{file}})
}

// Failed reports that it cannot do its work, and why. The caller ends then.
func (c *Companion) Failed(fields ...string) { c.tell(wire.Message{Kind: wire.Failed, Fields: fields}) }

// Status reports the state of the work.
func (c *Companion) Status(fields ...string) { c.tell(wire.Message{Kind: wire.Status, Fields: fields}) }

// Note is Status for a change that the present daemon need not know.
func (c *Companion) Note(fields ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.latest[wire.Status] = wire.Message{Kind: wire.Status, Fields: fields}
}

// tell sends a message and remembers it. A daemon that does not read loses it, and is told the next one.
func (c *Companion) tell(m wire.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.latest[m.Kind] = m
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
	c.send(wire.Message{Kind: wire.Hello, Fields: []string{strconv.Itoa(wire.Version)}, Files: []int{c.pidfd}})
	for _, kind := range []wire.Kind{wire.Ready, wire.Failed, wire.Status, wire.Ended} {
		if m, ok := c.latest[kind]; ok {
			c.send(m)
		}
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
		case errors.Is(err, wire.ErrMalformed): // of a later version
		case !c.next():
			return
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
		socket, _, err := unix.Accept4(wire.SocketFD, unix.SOCK_CLOEXEC)
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

// End writes the exit record, whole or not at all, for a daemon that comes later, and then reports it. The caller ends then.
func (c *Companion) End(fields ...string) error {
	m := wire.Message{Kind: wire.Ended, Fields: fields}
	err := write(wire.RecordName(c.name), m.Encode())
	c.tell(m)
	return err
}

func write(name string, data []byte) error {
	fd, err := unix.Openat(wire.RecordFD, name+wire.RecordNew, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	file := os.NewFile(uintptr(fd), name)
	_, err = file.Write(data)
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.NewSyscallError("renameat", unix.Renameat(wire.RecordFD, name+wire.RecordNew, wire.RecordFD, name))
	}
	if err != nil {
		_ = unix.Unlinkat(wire.RecordFD, name+wire.RecordNew, 0)
	}
	return err
}
