package supervisor

import (
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// logFile is the log of a container, which keeps the latest half to whole of its size: package wire has the files. It may be
// written by several pumps.
type logFile struct {
	dir  int    // the directory that it is in
	name string // there
	half int64  // the most that a part and its index may have, in bytes

	losing func(reason string) // is called when output begins to be lost, and with "" when the log has noted how much; or nil

	mu   sync.Mutex
	now  part
	lost int64 // how many bytes of output were lost since the last ones that were written
	why  error // of that
}

// part is the part of a log that is being written.
type part struct {
	text, index int // descriptors
	size        int64
	indexed     int64     // size of the index
	marked      time.Time // when the last mark was made, or zero
}

const appending = unix.O_RDWR | unix.O_APPEND | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_CLOEXEC

// openLog opens a log to go on with it, or begins one. It follows no link. Only close gives back what it holds.
func openLog(dir int, name string, size int64) (*logFile, error) {
	l := &logFile{dir: dir, name: name, half: size / 2}
	text, err := unix.Openat(dir, name, appending, wire.LogOpen)
	if err != nil {
		return nil, err
	}
	if err := l.settle(text); err != nil {
		unix.Close(text)
		return nil, err
	}
	l.now, err = l.resume(text, name)
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (l *logFile) close() {
	unix.Close(l.now.text)
	unix.Close(l.now.index)
}

// settle brings a rotation to its end that was cut off, by the end of an earlier supervisor.
func (l *logFile) settle(text int) error {
	older, err := unix.Openat(l.dir, l.name+wire.LogOlder, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(older)
	var a, b unix.Stat_t
	if err := unix.Fstat(text, &a); err != nil {
		return err
	}
	if err := unix.Fstat(older, &b); err != nil {
		return err
	}
	if a.Ino == b.Ino { // it had got the second name and not yet lost the first
		return unix.Unlinkat(l.dir, l.name+wire.LogOlder, 0)
	}
	return unix.Fchmod(older, wire.LogFull)
}

// resume makes a part of an open file. If its index is not for that file it is begun anew: what is in the file counts as written
// now, since nobody knows. It closes text if it fails.
func (l *logFile) resume(text int, name string) (p part, err error) {
	p = part{text: text, index: -1}
	defer func() {
		if err != nil {
			unix.Close(text)
			unix.Close(p.index)
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(text, &st); err != nil {
		return p, err
	}
	p.size = st.Size
	if p.index, err = unix.Openat(l.dir, name+wire.LogIndex, appending, wire.LogOpen); err != nil {
		return p, err
	}
	var first [wire.LogMarkSize]byte
	n, err := unix.Pread(p.index, first[:], 0)
	if err == nil && n == len(first) && wire.ParseLogMark(first).At == int64(st.Ino) {
		p.indexed, err = unix.Seek(p.index, 0, unix.SEEK_END)
		return p, err
	}
	if err := unix.Ftruncate(p.index, 0); err != nil {
		return p, err
	}
	if err := p.mark(wire.LogMark{At: int64(st.Ino)}); err != nil || p.size == 0 {
		return p, err
	}
	return p, p.mark(wire.LogMark{At: time.Now().UnixNano()})
}

// mark adds to the index.
func (p *part) mark(m wire.LogMark) error {
	b := m.Encode()
	n, err := writeOnce(p.index, b[:])
	p.indexed += int64(n)
	return err
}

// write appends to the log. What it can't write is lost. As soon as the log can be written again it notes how much that was.
func (l *logFile) write(b []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n int64
	err := l.noteLoss()
	if err == nil {
		n, err = l.add(b)
	}
	if err == nil {
		return nil
	}
	if l.lost == 0 && l.losing != nil {
		l.losing(err.Error())
	}
	l.lost, l.why = l.lost+int64(len(b))-n, err
	return err
}

// flush notes in the log how much was lost, if it can.
func (l *logFile) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.noteLoss()
}

// noteLoss writes a line that says how much output was lost, if any was.
func (l *logFile) noteLoss() error {
	if l.lost == 0 {
		return nil
	}
	line := "[imageapi: " + strconv.FormatInt(l.lost, 10) + " bytes of output lost: " + l.why.Error() + "]\n"
	var last [1]byte
	if n, _ := unix.Pread(l.now.text, last[:], l.now.size-1); n == 0 || last[0] != '\n' {
		line = "\n" + line
	}
	if _, err := l.add([]byte(line)); err != nil {
		return err
	}
	l.lost = 0
	if l.losing != nil {
		l.losing("")
	}
	return nil
}

// add appends to the log and returns how many bytes of b it has written.
func (l *logFile) add(b []byte) (written int64, err error) {
	for len(b) > 0 {
		p := &l.now
		if p.marked.IsZero() || time.Since(p.marked) >= wire.LogMarkEvery {
			now := time.Now()
			if err := p.mark(wire.LogMark{At: now.UnixNano(), Offset: p.size}); err != nil {
				return written, err
			}
			p.marked = now
		}
		room := l.half - p.size - p.indexed
		if room <= 0 {
			if err := l.rotate(); err != nil {
				return written, err
			}
			continue
		}
		n, err := writeOnce(p.text, b[:min(int64(len(b)), room)])
		p.size += int64(n)
		written += int64(n)
		b = b[n:]
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

func writeOnce(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Write(fd, b)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// rotate begins a new part. If it can't, the present one stays as it is.
func (l *logFile) rotate() error {
	// 1. The older part goes first, which gives back memory that the new one may need.
	if err := l.drop(); err != nil {
		return err
	}
	// 2. The new part, where nobody looks for it yet.
	next, err := l.begin(l.name + wire.LogNext)
	if err != nil {
		return err
	}
	// 3. The present one becomes the older one, and the new one takes its name: at no time is there none of that name.
	if err := l.replace(l.name + wire.LogNext); err != nil {
		unix.Close(next.text)
		unix.Close(next.index)
		return err
	}
	// 4. Now that the next part can be found readers may know that this one is complete.
	_ = unix.Fchmod(l.now.text, wire.LogFull)
	l.close()
	l.now = next
	return nil
}

// drop removes the older part. Its index goes last: as long as there is a part, there is its index.
func (l *logFile) drop() error {
	if err := l.dropText(l.name + wire.LogOlder); err != nil {
		return err
	}
	if err := unix.Unlinkat(l.dir, l.name+wire.LogOlder+wire.LogIndex, 0); err != nil && err != unix.ENOENT {
		return err
	}
	return nil
}

// dropText removes a file so that who still reads it does not keep its memory.
func (l *logFile) dropText(name string) error {
	old, err := unix.Openat(l.dir, name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(old)
	if err := unix.Unlinkat(l.dir, name, 0); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(old, &st); err != nil || st.Nlink > 0 { // the present part, after a replace that failed
		return err
	}
	return unix.Ftruncate(old, 0)
}

// begin makes an empty part.
func (l *logFile) begin(name string) (part, error) {
	for _, leftover := range []string{name, name + wire.LogIndex} {
		if err := unix.Unlinkat(l.dir, leftover, 0); err != nil && err != unix.ENOENT {
			return part{}, err
		}
	}
	text, err := unix.Openat(l.dir, name, appending|unix.O_EXCL, wire.LogOpen)
	if err != nil {
		return part{}, err
	}
	return l.resume(text, name)
}

// replace moves the present part to the name of the older one and the one called next to that of the present one.
func (l *logFile) replace(next string) error {
	older := l.name + wire.LogOlder
	for _, suffix := range []string{wire.LogIndex, ""} {
		if err := unix.Linkat(l.dir, l.name+suffix, l.dir, older+suffix, 0); err != nil {
			return err
		}
		if err := unix.Renameat(l.dir, next+suffix, l.dir, l.name+suffix); err != nil {
			return err
		}
	}
	return nil
}
