package cli

import (
	"errors"
	"io"
	"os"

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
