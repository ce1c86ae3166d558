package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// viewSize is how many bytes of output wait for a client. It misses more.
const viewSize = 1 << 20

// attach connects a client with the console of the container until the client is gone or the container has ended. The supervisor keeps
// reading the console, and passes the output on.
func (p *process) attach(ctx context.Context, connect func(driver.Input) (driver.Attached, error)) error {
	if !p.config.Systemd {
		return errs.New(errs.Conflict, "attach to the console: only containers with systemd have one; use exec")
	}
	if err := p.addCommand(); err != nil {
		return fmt.Errorf("attach to the console: %w", err)
	}
	defer p.commands.Done()
	in, err := newInput(true)
	if err != nil {
		return err
	}
	defer in.close()
	out, err := newStream()
	if err != nil {
		return err
	}
	defer out.close()
	_, _ = unix.FcntlInt(out.writer.Fd(), unix.F_SETPIPE_SZ, viewSize) // less is enough
	err = p.driver.opt.Failpoint.Do("console attach", func() error {
		return p.keeper.Send(wire.Message{Kind: wire.Attach, Files: []int{int(in.theirs.Fd()), int(out.writer.Fd())}})
	})
	in.theirs.Close()
	if err = errors.Join(err, out.open()); err != nil {
		return fmt.Errorf("attach to the console: %w", err)
	}
	if err := in.takeMaster(ctx); err != nil {
		return fmt.Errorf("attach to the console: %w", err)
	}
	to, err := connect(driver.Input{Stdin: typist{in.terminal}, Resize: func(rows, columns uint16) error {
		return p.driver.opt.Failpoint.Do("terminal resize", func() error { return in.resize(rows, columns) })
	}})
	if err != nil {
		return err
	}
	return p.view(ctx, out, to)
}

// view passes on output until the client is gone, the container has ended or the server ends.
func (p *process) view(ctx context.Context, out *stream, to driver.Attached) error {
	watched, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.driver.closing, func() {
		to.Cut()
		cancel()
	})()
	defer context.AfterFunc(p.over, func() { time.AfterFunc(dying, to.Cut) })()
	defer spawn.Expire(watched, out.pipe)()
	_, err := io.CopyBuffer(struct{ io.Writer }{to.Stdout}, struct{ io.Reader }{out.pipe}, make([]byte, chunk))
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case p.driver.closing.Err() != nil:
		return errs.New(errs.Conflict, "attach to the console: %w", errClosing)
	}
	return err
}

// typist writes to a console. The end of its input is not that of the console's.
type typist struct{ io.Writer }

// Close implements io.Closer.
func (typist) Close() error { return nil }
