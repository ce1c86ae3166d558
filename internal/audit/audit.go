// Package audit records changes, one line of JSON for each, in a sink of their own: a file that rotates, or journald.
package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kraken-hpc/imageapi/internal/logkey"
)

// Journald is the name of the sink that is no file.
const Journald = "journald"

// longest is the space that is kept for the record of each change that is under way. Records are shorter.
const longest = 4 << 10

// Options is what Open works with.
type Options struct {
	Sink   string // Journald, or the path of a file
	Size   int64  // at which the file rotates
	Files  int    // how many are kept, the current one included
	Refuse bool   // no change without a record
	Log    *slog.Logger
}

// sink takes lines. Its methods are called one at a time.
type sink interface {
	// reserve returns an error unless n more bytes can be written.
	reserve(n int64) error
	write(line []byte) error
	io.Closer
}

// Log is an audit log. Its methods are safe for concurrent use, and those of a nil *Log do nothing.
type Log struct {
	opt  Options
	lost atomic.Int64

	mu      sync.Mutex // protects what follows
	sink    sink
	open    int64    // changes that are under way
	backlog [][]byte // records that the sink did not take; no change is admitted before they are written
	failing bool     // the daemon's log has the reason
}

// Open opens the sink.
func Open(opt Options) (*Log, error) {
	l := &Log{opt: opt}
	var err error
	if opt.Sink == Journald {
		l.sink, err = openJournald(journaldSocket)
	} else {
		l.sink, err = openFile(opt.Sink, opt.Size, opt.Files)
	}
	if err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	return l, nil
}

// Admit makes sure that a change can be recorded. Without an error the caller calls Record when the change is done.
func (l *Log) Admit() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.flush()
	if err == nil {
		err = l.sink.reserve((l.open + 1) * longest)
	}
	l.report(err)
	if err != nil && l.opt.Refuse {
		return err
	}
	l.open++
	return nil
}

// Record writes the record of a change that was admitted.
func (l *Log) Record(message string, attrs ...slog.Attr) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	l.write(line(message, attrs))
}

// Note writes a record in addition to that of the change.
func (l *Log) Note(message string, attrs ...slog.Attr) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.write(line(message, attrs))
}

// Lost returns the number of records that were not written.
func (l *Log) Lost() int64 {
	if l == nil {
		return 0
	}
	return l.lost.Load()
}

// Close closes the sink. Records that it still does not take are lost.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.flush()
	if n := len(l.backlog); n > 0 {
		l.lost.Add(int64(n))
		err = fmt.Errorf("%d audit records are lost: %w", n, err)
	}
	return errors.Join(err, l.sink.Close())
}

// write writes a line after the backlog. l.mu must be held.
func (l *Log) write(text []byte) {
	err := l.flush()
	if err == nil {
		err = l.sink.write(text)
	}
	l.report(err)
	switch {
	case err == nil:
	case l.opt.Refuse:
		l.backlog = append(l.backlog, text)
	default:
		l.lost.Add(1)
	}
}

// flush writes the backlog. l.mu must be held.
func (l *Log) flush() error {
	for len(l.backlog) > 0 {
		if err := l.sink.write(l.backlog[0]); err != nil {
			return err
		}
		l.backlog = l.backlog[1:]
	}
	return nil
}

// report logs that the sink fails, or works again. l.mu must be held.
func (l *Log) report(err error) {
	switch failing := err != nil; {
	case failing == l.failing:
		return
	case failing && l.opt.Refuse:
		l.opt.Log.Error("audit log failed, changes are refused", logkey.Sink, l.opt.Sink, logkey.Error, err)
	case failing:
		l.opt.Log.Error("audit log failed, records are lost", logkey.Sink, l.opt.Sink, logkey.Error, err)
	default:
		l.opt.Log.Info("audit log works again", logkey.Sink, l.opt.Sink, logkey.Lost, l.lost.Load())
	}
	l.failing = err != nil
}

// line formats a record, with a newline.
func line(message string, attrs []slog.Attr) []byte {
	var out bytes.Buffer
	handler := slog.NewJSONHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}})
	record := slog.NewRecord(time.Now(), slog.LevelInfo, message, 0)
	record.AddAttrs(attrs...)
	_ = handler.Handle(context.Background(), record) // a buffer takes everything
	return out.Bytes()
}
