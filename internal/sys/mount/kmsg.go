package mount

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// kernelLog reads what the kernel logs about one subject from a moment on (/dev/kmsg, Documentation/ABI/testing/dev-kmsg).
// A nil kernelLog has no lines.
type kernelLog struct {
	fd      int
	subject string
}

// maxLines bounds what an error quotes: a damaged file system can be talkative.
const maxLines = 6

// deviceName returns what the kernel calls the device at path: dm-0, not mapper/data.
func deviceName(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return filepath.Base(path)
}

// openKernelLog begins to listen for lines that name subject: a device, or the part of the kernel that speaks. Where
// the log can't be read the result is nil: the errno has to do then.
func openKernelLog(subject string) *kernelLog {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		_ = unix.Close(fd)
		return nil
	}
	return &kernelLog{fd: fd, subject: subject}
}

func (l *kernelLog) close() {
	if l != nil {
		_ = unix.Close(l.fd)
	}
}

// lines returns the lines about the subject since the last call, without repetitions.
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
		if mentions(text, l.subject) && (len(lines) == 0 || lines[len(lines)-1] != text) {
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

// mentions tells whether text names the subject: loop1 is neither loop12 nor loop1p2.
func mentions(text, subject string) bool {
	return slices.Contains(strings.FieldsFunc(text, func(r rune) bool {
		return r != '-' && r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}), subject)
}
