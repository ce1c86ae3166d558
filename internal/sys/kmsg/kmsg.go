// Package kmsg reads the kernel's log (/dev/kmsg, Documentation/ABI/testing/dev-kmsg): where a system call returns
// only an errno, the messages that the kernel logged meanwhile explain it.
package kmsg

import (
	"errors"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// Log holds the lines about one subject from a moment on. A nil Log has none.
type Log struct {
	fd    int
	about func(line string) bool
}

// maxLines bounds what an error quotes: a damaged file system can be talkative.
const maxLines = 6

// Listen begins to listen for the lines that about accepts. Where the log can't be read the result is nil: the errno
// has to do then.
func Listen(about func(line string) bool) *Log {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		_ = unix.Close(fd)
		return nil
	}
	return &Log{fd: fd, about: about}
}

// Close ends it.
func (l *Log) Close() {
	if l != nil {
		_ = unix.Close(l.fd)
	}
}

// Lines returns the lines since the last call, the first few of them, without repetitions.
func (l *Log) Lines() []string {
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
		if l.about(text) && !slices.Contains(lines, text) {
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

// About accepts the lines that name subject, a device or the part of the kernel that speaks: loop1 is neither loop12 nor
// loop1p2.
func About(subject string) func(line string) bool {
	return func(line string) bool {
		return slices.Contains(strings.FieldsFunc(line, func(r rune) bool {
			return r != '-' && r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
		}), subject)
	}
}
