package cli

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
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
