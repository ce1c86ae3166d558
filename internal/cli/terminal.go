package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/printable"
)

// widthOf returns the columns of a terminal, 0 for what is none.
func widthOf(w io.Writer) int {
	file, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	if size.Col == 0 {
		return 80 // a terminal that does not know, such as a serial line
	}
	return int(size.Col)
}

// forTerminal calls write with a writer to w that escapes what could change a terminal, if w is one of width columns, or to w itself.
func forTerminal(w io.Writer, width int, write func(w io.Writer) error) error {
	if width == 0 {
		return write(w)
	}
	safe := &printable.Writer{To: w}
	return errors.Join(write(safe), safe.Flush())
}

// terminal passes on all between the server and the user's terminal, which does nothing by itself meanwhile.
func (s *session) terminal(ctx context.Context, a *app, in io.Reader) (*status, error) {
	file, ok := a.in.(*os.File)
	if !ok || a.outWidth == 0 {
		return s.pass(ctx, in, a.out, a.err)
	}
	restore, err := makeRaw(int(file.Fd()))
	if err != nil { // it is none
		return s.pass(ctx, in, a.out, a.err)
	}
	defer restore()
	sized := make(chan os.Signal, 1)
	signal.Notify(sized, unix.SIGWINCH)
	defer signal.Stop(sized)
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			if size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ); err == nil {
				s.resize(size.Row, size.Col)
			}
			select {
			case <-sized:
			case <-over:
				return
			}
		}
	}()
	return s.pass(ctx, in, a.out, a.err)
}

// makeRaw has a terminal pass on every character as it is typed, and show nothing by itself (cfmakeraw(3)).
func makeRaw(fd int) (restore func(), err error) {
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	raw := *before
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, err
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, before) }, nil
}
