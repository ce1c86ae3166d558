package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// input is what goes to a command: a pipe to its standard input, or a socket by which the master of its terminal comes.
type input struct {
	ours, theirs *os.File
	terminal     *os.File // the master
}

func newInput(tty bool) (in *input, err error) {
	in = &input{}
	if tty {
		var ours spawn.Conn
		ours, in.theirs, err = spawn.Pair("input")
		in.ours = ours.File
	} else {
		in.theirs, in.ours, err = os.Pipe()
	}
	return in, err
}

// close ends all writes. It may be nil.
func (in *input) close() {
	if in == nil {
		return
	}
	in.theirs.Close()
	in.ours.Close()
	in.terminal.Close() // nil is fine
}

// begin gives the command to its parent.
func (c *command) begin(config wire.Config) error {
	m := config.Message()
	if c.input == nil {
		return c.control.Send(m)
	}
	defer c.input.theirs.Close()
	m.Files = []int{int(c.input.theirs.Fd())}
	return c.of.driver.opt.Failpoint.Do("command input", func() error { return c.control.Send(m) })
}

// connect connects the command, which runs by now, with what takes its output and gives its input.
func (c *command) connect(given driver.Command) error {
	if given.Attach == nil {
		c.stdout.start(&c.kept[0])
		c.stderr.start(&c.kept[1])
		if c.input != nil {
			go c.input.feed(given.Input)
		}
		return nil
	}
	var from driver.Input
	switch {
	case given.TTY:
		if err := c.input.takeMaster(c.of.over); err != nil {
			return err
		}
		from.Resize = func(rows, columns uint16) error {
			return c.of.driver.opt.Failpoint.Do("terminal resize", func() error { return c.input.resize(rows, columns) })
		}
		if given.Interactive {
			from.Stdin = keyboard{c.input.terminal}
		}
	case given.Interactive:
		from.Stdin = c.input.ours
	}
	to, err := given.Attach(from)
	if err != nil {
		return err
	}
	c.cut = to.Cut
	if given.TTY {
		c.stdout.close()
		c.stdout = &stream{pipe: c.input.terminal, writer: c.input.theirs, reader: c.input.theirs}
	}
	c.stdout.start(to.Stdout)
	c.stderr.start(to.Stderr)
	return nil
}

// feed writes what the command is given, as far as it reads that.
func (in *input) feed(b []byte) {
	_, _ = io.Copy(in.ours, bytes.NewReader(b))
	in.ours.Close()
}

// masterTime is how long a master that was sent may take to come.
const masterTime = 5 * time.Second

// takeMaster receives the master of a terminal. It comes out of the container: nothing but a terminal is taken.
func (in *input) takeMaster(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, masterTime)
	defer cancel()
	defer spawn.Expire(limited, in.ours)()
	m, err := spawn.Conn{File: in.ours}.Receive()
	if errors.Is(err, io.EOF) {
		return errs.New(errs.Conflict, "%w", errEnded)
	}
	if err == nil && (len(m.Files) != 1 || !isMaster(m.Files[0])) {
		err = unix.ENOTTY
	}
	if err == nil {
		err = unix.SetNonblock(m.Files[0], true)
	}
	if err != nil {
		m.Close()
		return fmt.Errorf("receive its terminal: %w", err)
	}
	in.terminal = os.NewFile(uintptr(m.Files[0]), "terminal")
	return nil
}

// isMaster reports whether a descriptor is that of a terminal's master.
func isMaster(fd int) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(5, 2) {
		return false
	}
	_, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	return err == nil
}

func (in *input) resize(rows, columns uint16) error {
	conn, err := in.terminal.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
	return errors.Join(err, failed)
}

// keyboard writes to a terminal. Its end is the character that means it: a terminal has no half that could be closed.
type keyboard struct{ *os.File }

// Close implements io.Closer.
func (k keyboard) Close() error {
	const endOfTransmission = 4
	_, err := k.Write([]byte{endOfTransmission})
	return err
}
