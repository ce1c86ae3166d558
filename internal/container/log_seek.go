package container

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// seek goes to where query begins: to the later of the two places that its parts name.
func (l *logReader) seek(query driver.LogQuery) error {
	var start int64 // from the begin of the first part
	var err error
	if !query.Since.IsZero() {
		if start, err = l.since(query.Since); err != nil {
			return err
		}
	}
	if query.Tail >= 0 {
		lines, err := l.lastLines(query.Tail, start)
		if err != nil {
			return err
		}
		start = max(start, lines)
	}
	for i := range l.parts {
		p := &l.parts[i]
		p.pos = min(start, p.end)
		start -= p.pos
	}
	return nil
}

// since returns where what was written at a time or later begins.
func (l *logReader) since(t time.Time) (int64, error) {
	var before int64
	for _, p := range l.parts {
		if p.end == 0 {
			continue
		}
		offset, err := l.markSince(p, t)
		if err != nil {
			return 0, err
		}
		if offset < p.end {
			return before + offset, nil
		}
		before += p.end
	}
	return before, nil
}

// markSince returns where in a part what was written at a time or later begins, or its end. A mark stands for all that is written
// until the next one may follow.
func (l *logReader) markSince(p logPart, t time.Time) (int64, error) {
	index, err := l.indexOf(p)
	if err != nil {
		return 0, err
	}
	defer index.Close()
	from := t.Add(-wire.LogMarkEvery).UnixNano()
	in := bufio.NewReader(index)
	for first := true; ; first = false {
		m, err := readMark(in)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return p.end, nil
		case err != nil:
			return 0, err
		case !first && m.At > from:
			return min(m.Offset, p.end), nil
		}
	}
}

func readMark(in io.Reader) (wire.LogMark, error) {
	var b [wire.LogMarkSize]byte
	_, err := io.ReadFull(in, b[:])
	return wire.ParseLogMark(b), err
}

// indexOf opens the index of a part, which gets another name when the part does.
func (l *logReader) indexOf(p logPart) (*os.File, error) {
	st, err := p.stat()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{l.path + wire.LogIndex, l.path + wire.LogOlder + wire.LogIndex} {
		f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		m, err := readMark(io.NewSectionReader(f, 0, wire.LogMarkSize))
		if err == nil && m.At == int64(st.Ino) {
			return f, nil
		}
		_ = f.Close()
	}
	return nil, errRotated
}

// lastLines returns where the last n lines begin. It does not look before the place least. What follows the last
// newline is a line too.
func (l *logReader) lastLines(n, least int64) (int64, error) {
	var total int64
	for _, p := range l.parts {
		total += p.end
	}
	if n == 0 {
		return total, nil
	}
	buf := make([]byte, 32<<10)
	before := total
	for i := len(l.parts) - 1; i >= 0; i-- {
		p := l.parts[i]
		before -= p.end
		for end := p.end; end > 0 && before+end > least; {
			block := buf[:min(end, int64(len(buf)))]
			end -= int64(len(block))
			if _, err := p.file.ReadAt(block, end); errors.Is(err, io.EOF) {
				return 0, errRotated
			} else if err != nil {
				return 0, err
			}
			for at := bytes.LastIndexByte(block, '\n'); at >= 0; at = bytes.LastIndexByte(block[:at], '\n') {
				place := before + end + int64(at) + 1
				if place == total { // it ends the last line
					continue
				}
				if n--; n == 0 {
					return place, nil
				}
			}
		}
	}
	return 0, nil
}
