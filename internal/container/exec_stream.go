package container

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxOutput is how many bytes are kept of each stream of a command.
const maxOutput = 1 << 20

// stream is a pipe from a command. It keeps the beginning of what comes and throws the rest away.
type stream struct {
	writer *os.File // for the command
	reader *os.File // for its parent; both are closed here by start

	pipe *os.File      // what is read here, from start to finish
	done chan struct{} // closed when nothing is read any more
	kept []byte
	more bool // has come than what is kept
}

// newStream makes a pipe whose ends both block: a program does not expect anything else of its standard output.
func newStream() (*stream, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	return &stream{reader: os.NewFile(uintptr(ends[0]), "pipe"), writer: os.NewFile(uintptr(ends[1]), "pipe")}, nil
}

// start begins to read. The other processes have their descriptors by now.
func (s *stream) start() error {
	fd, err := unix.FcntlInt(s.reader.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // this end only, but also the parent's descriptor of it
		unix.Close(fd)
		return os.NewSyscallError("fcntl", err)
	}
	s.pipe, s.done = os.NewFile(uintptr(fd), "pipe"), make(chan struct{})
	s.writer.Close()
	s.reader.Close()
	go s.read()
	return nil
}

func (s *stream) read() {
	defer close(s.done)
	for buf := make([]byte, 32<<10); ; {
		n, err := s.pipe.Read(buf)
		s.take(buf[:n])
		if err != nil {
			return
		}
	}
}

func (s *stream) take(b []byte) {
	if room := maxOutput - len(s.kept); len(b) > room {
		b, s.more = b[:room], true
	}
	s.kept = append(s.kept, b...)
}

// finish takes what has been written until now and then reads no more. It does not wait for the end of file: what the command
// has left running may hold the pipe for ever, and write all the time.
func (s *stream) finish() {
	_ = s.pipe.SetReadDeadline(time.Unix(1, 0))
	<-s.done
	defer s.pipe.Close()
	conn, err := s.pipe.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) {
		left, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ) // FIONREAD, by its other name
		for buf := make([]byte, 32<<10); err == nil && left > 0; {
			var n int
			if n, err = unix.Read(int(fd), buf[:min(left, len(buf))]); n <= 0 {
				return
			}
			s.take(buf[:n])
			left -= n
		}
	})
}

// close gives back what the stream has. It may be nil.
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
	<-s.done
}
