package container

import (
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxOutput is how many bytes are kept of each stream of a command whose output is kept.
const maxOutput = 1 << 20

// stream carries what a command writes, by a pipe or a terminal.
type stream struct {
	writer *os.File // for the command
	reader *os.File // for its parent; both are closed here by start

	pipe *os.File      // what is read here, from start to finish
	done chan struct{} // closed when nothing is read any more
	to   io.Writer     // what takes it
	fail error         // of to, which gets nothing more then
}

// newStream makes a pipe whose ends both block: a program does not expect anything else of its standard output.
func newStream() (*stream, error) {
	reader, writer, err := os.Pipe() // Fd lets them block
	return &stream{reader: reader, writer: writer}, err
}

// open keeps the end that is read here. The other processes have their descriptors by now.
func (s *stream) open() error {
	fd, err := unix.FcntlInt(s.reader.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // this end only, but also the parent's descriptor of it
		unix.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	s.pipe = os.NewFile(uintptr(fd), "pipe")
	s.writer.Close()
	s.reader.Close()
	return nil
}

// start begins to read.
func (s *stream) start(to io.Writer) {
	s.to, s.done = to, make(chan struct{})
	go s.read()
}

// read reads as fast as what takes it does: a command waits for its reader.
func (s *stream) read() {
	defer close(s.done)
	for buf := make([]byte, chunk); ; {
		n, err := s.pipe.Read(buf)
		s.take(buf[:n])
		if err != nil {
			return
		}
	}
}

// chunk is how many bytes are passed on at a time.
const chunk = 32 << 10

func (s *stream) take(b []byte) {
	if s.fail == nil && len(b) > 0 {
		_, s.fail = s.to.Write(b)
	}
}

// finish takes all output until now and then reads no more. It does not wait for the end of file: a process that the command
// has left running may hold the pipe forever, and write all the time.
func (s *stream) finish() {
	if s.done == nil {
		return
	}
	_ = s.pipe.SetReadDeadline(time.Unix(1, 0))
	<-s.done
	defer s.pipe.Close()
	conn, err := s.pipe.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) {
		// A terminal has its output in parts and reports the first only: it is read until there is nothing, or far more than it can hold.
		const most = 2 * maxOutput
		left, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ) // FIONREAD, by its other name
		if isMaster(int(fd)) {
			left = most
		}
		for buf := make([]byte, chunk); err == nil && left > 0; {
			var n int
			if n, err = unix.Read(int(fd), buf[:min(left, len(buf))]); n <= 0 {
				return
			}
			s.take(buf[:n])
			left -= n
		}
	})
}

// close closes the files of the stream, which may be nil.
func (s *stream) close() {
	if s == nil {
		return
	}
	s.writer.Close()
	s.reader.Close()
	if s.pipe == nil {
		return
	}
	s.pipe.Close() // ends read
	if s.done != nil {
		<-s.done
	}
}

// kept holds the beginning of what comes, and throws the rest away.
type kept struct {
	bytes []byte
	more  bool // has come than that
}

// Write implements io.Writer.
func (k *kept) Write(b []byte) (int, error) {
	n := len(b)
	if room := maxOutput - len(k.bytes); len(b) > room {
		b, k.more = b[:room], true
	}
	k.bytes = append(k.bytes, b...)
	return n, nil
}
