package container

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/inotify"
)

// OpenLog implements driver.ContainerUnit.
func (u *unit) OpenLog(id int64, query driver.LogQuery) (driver.Log, error) {
	path := u.driver.logPath(id)
	for range logTries {
		l, err := u.driver.readLog(path, query)
		switch {
		case err == nil && query.Timestamps:
			return stamped(l), nil
		case err == nil:
			return l, nil
		case errors.Is(err, os.ErrNotExist):
			return nil, errs.New(errs.NotFound, "read log: %w", err)
		case !errors.Is(err, errRotated):
			return nil, fmt.Errorf("read log: %w", err)
		}
	}
	return nil, errs.New(errs.Conflict, "read log: the log is replaced faster than it can be read; try again, or raise --log-size")
}

// logTries is how often a log is opened again because it was rotated meanwhile. A reader that fails that often would be too slow anyway.
const logTries = 20

var errRotated = errors.New("the log was rotated")

// logReader reads a log, part by part, as package wire describes them.
type logReader struct {
	path  string
	parts []logPart // those that are open, in their order; the first is being read
	watch *inotify.Watcher
	bell  *inotify.Bell // rings for the last of parts; nil if the log is not followed
}

// logPart is one part of a log.
type logPart struct {
	file *os.File
	pos  int64
	end  int64 // where to stop, or -1 if it may still grow
}

// readLog opens a log where query wants it.
func (d *Driver) readLog(path string, query driver.LogQuery) (_ *logReader, err error) {
	l := &logReader{path: path, watch: d.watcher}
	defer func() {
		if err != nil {
			_ = l.Close()
		}
	}()
	if err := l.open(); err != nil {
		return nil, err
	}
	if err := l.seek(query); err != nil {
		return nil, err
	}
	if !query.Follow {
		return l, nil
	}
	last := &l.parts[len(l.parts)-1]
	last.end = -1
	l.bell, err = l.watch.Watch(last.file)
	return l, err
}

// open opens the part that is being written and, if there is one, that before it, up to what they hold now.
func (l *logReader) open() error {
	now, err := openPart(l.path)
	if err != nil {
		return err
	}
	l.parts = []logPart{now}
	older, err := openPart(l.path + wire.LogOlder)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err == nil {
		l.parts = []logPart{older, now}
	}
	// If now still has a name, older is what comes before it, or is the same if that is becoming the older one at this moment.
	st, err := now.stat()
	if err != nil || len(l.parts) == 1 {
		return err
	}
	before, err := older.stat()
	switch {
	case err != nil:
		return err
	case before.Ino == st.Ino:
		_ = older.file.Close()
		l.parts = l.parts[1:]
	case st.Nlink == 0:
		return errRotated
	}
	return nil
}

func openPart(path string) (logPart, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return logPart{}, err
	}
	p := logPart{file: f}
	st, err := p.stat()
	if err != nil {
		_ = f.Close()
	}
	p.end = st.Size
	return p, err
}

func (p *logPart) stat() (st unix.Stat_t, err error) {
	err = unix.Fstat(int(p.file.Fd()), &st)
	return st, err
}

// Read implements driver.Log.
func (l *logReader) Read(b []byte) (int, error) {
	for {
		p := &l.parts[0]
		if p.pos == p.end {
			if len(l.parts) == 1 {
				return 0, io.EOF
			}
			_ = p.file.Close()
			l.parts = l.parts[1:]
			continue
		}
		st, err := p.stat() // before it is read: nothing is added to a full part any more
		if err != nil {
			return 0, err
		}
		if n, err := p.read(b); n > 0 || err != nil {
			return n, err
		}
		switch {
		case p.end >= 0: // there was more
			return 0, driver.ErrLogGone
		case st.Mode&0o777 != wire.LogFull:
			return 0, io.EOF
		}
		if err := l.next(); err != nil {
			return 0, err
		}
	}
}

// read returns 0 bytes and no error at the end of the file.
func (p *logPart) read(b []byte) (int, error) {
	if p.end >= 0 {
		b = b[:min(int64(len(b)), p.end-p.pos)]
	}
	n, err := p.file.ReadAt(b, p.pos)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	p.pos += int64(n)
	return n, err
}

// next continues with the part after one that is full and was read.
func (l *logReader) next() error {
	p := &l.parts[0]
	after, err := openPart(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return driver.ErrLogGone
	}
	if err != nil {
		return err
	}
	after.end = -1
	// A part keeps its name until the one after it is full.
	st, err := p.stat()
	if err == nil && st.Nlink == 0 {
		err = driver.ErrLogGone
	}
	if err != nil {
		_ = after.file.Close()
		return err
	}
	l.bell.Close()
	_ = p.file.Close()
	l.parts[0] = after
	l.bell, err = l.watch.Watch(after.file)
	return err
}

// More implements driver.Log.
func (l *logReader) More() <-chan struct{} {
	if l.bell == nil {
		return nil
	}
	return l.bell.Rings()
}

// Close implements driver.Log.
func (l *logReader) Close() error {
	if l.bell != nil {
		l.bell.Close()
	}
	for _, p := range l.parts {
		_ = p.file.Close() // it was only read
	}
	return nil
}
