package container

import (
	"bytes"
	"io"
	"os"
	"time"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// stampedLog is a log in which each line begins with the time at which it was written, by the marks of the index.
type stampedLog struct {
	*logReader
	raw, ready []byte // read and not stamped, stamped and not read
	begins     bool   // the next byte is the first of a line

	part  *os.File // that index belongs to
	index *os.File // nil if the part has none any more
	next  int64    // where the next mark is in the index
	ahead wire.LogMark
	at    int64 // time of the last mark that was passed
}

func stamped(l *logReader) *stampedLog {
	return &stampedLog{logReader: l, raw: make([]byte, 32<<10), begins: true}
}

// Read implements driver.Log.
func (s *stampedLog) Read(b []byte) (int, error) {
	if len(s.ready) == 0 {
		n, err := s.logReader.Read(s.raw)
		if err != nil {
			return 0, err
		}
		s.stamp(s.raw[:n])
	}
	n := copy(b, s.ready)
	s.ready = s.ready[n:]
	return n, nil
}

// stamp adds a text that was just read from the first part.
func (s *stampedLog) stamp(text []byte) {
	p := s.parts[0]
	offset := p.pos - int64(len(text))
	for line := range bytes.Lines(text) {
		if s.begins {
			s.ready = time.Unix(0, s.timeAt(p, offset)).UTC().AppendFormat(s.ready, "2006-01-02T15:04:05.000Z ")
		}
		s.ready = append(s.ready, line...)
		s.begins = line[len(line)-1] == '\n'
		offset += int64(len(line))
	}
}

// timeAt returns when the text at an offset in a part was written. The supervisor writes a mark before the text that follows it.
func (s *stampedLog) timeAt(p logPart, offset int64) int64 {
	if s.part != p.file {
		s.closeIndex()
		s.part, s.next, s.ahead = p.file, wire.LogMarkSize, wire.LogMark{} // the first mark names the file
		s.index, _ = s.indexOf(p)                                          // without one, the last time holds
	}
	for s.index != nil && s.ahead.Offset <= offset {
		if s.ahead.At != 0 {
			s.at = s.ahead.At
		}
		mark, err := readMark(io.NewSectionReader(s.index, s.next, wire.LogMarkSize))
		if err != nil { // the supervisor may add one later
			s.ahead = wire.LogMark{}
			break
		}
		s.ahead = mark
		s.next += wire.LogMarkSize
	}
	return s.at
}

func (s *stampedLog) closeIndex() {
	if s.index != nil {
		_ = s.index.Close() // it was only read
	}
}

// Close implements driver.Log.
func (s *stampedLog) Close() error {
	s.closeIndex()
	return s.logReader.Close()
}
