package mount

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// kernelLog reads what the kernel logs about one device from a moment on (/dev/kmsg, Documentation/ABI/testing/dev-kmsg).
// A nil kernelLog has no lines.
type kernelLog struct {
	fd     int
	device string
}

// maxLines bounds what an error quotes: a damaged file system can be talkative.
const maxLines = 6

// openKernelLog begins to listen for lines about the device at path. Where the log can't be read the result is nil:
// the errno has to do then.
func openKernelLog(path string) *kernelLog {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // the kernel knows dm-0, not mapper/data
	}
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		_ = unix.Close(fd)
		return nil
	}
	return &kernelLog{fd: fd, device: filepath.Base(path)}
}

func (l *kernelLog) close() {
	if l != nil {
		_ = unix.Close(l.fd)
	}
}

// lines returns the lines about the device since the last call, without repetitions.
func (l *kernelLog) lines() []string {
	if l == nil {
		return nil
	}
	var lines []string
	buf := make([]byte, 8192) // CONSOLE_EXT_LOG_MAX: one record a read
	for len(lines) < maxLines {
		n, err := unix.Read(l.fd, buf)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EINTR) {
			continue // records were overwritten before they were read
		}
		if err != nil || n <= 0 {
			break
		}
		text := recordText(string(buf[:n]))
		if mentions(text, l.device) && (len(lines) == 0 || lines[len(lines)-1] != text) {
			lines = append(lines, text)
		}
	}
	return lines
}

// recordText returns the message of a record: "level,sequence,time,flags;message\n key=value…".
func recordText(record string) string {
	_, text, _ := strings.Cut(record, ";")
	text, _, _ = strings.Cut(text, "\n")
	return strings.TrimSpace(text)
}

// mentions tells whether text names the device: loop1 is neither loop12 nor loop1p2.
func mentions(text, device string) bool {
	return slices.Contains(strings.FieldsFunc(text, func(r rune) bool {
		return r != '-' && r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}), device)
}
