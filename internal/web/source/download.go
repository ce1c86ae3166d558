package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Sink takes a whole object in order.
type Sink interface {
	io.Writer
	// Restart forgets what was written: the object is another one, or the server cannot continue.
	Restart() error
}

// failed is the error of a Sink, which no other attempt mends.
type failed struct{ error }

func (f failed) Unwrap() error { return f.error }

// Download writes a whole object to sink. It resumes where an answer ended early if the server can, tries the URLs in turn, and waits as a
// read of a Source does. progress is called with the bytes so far and in all, or -1 where the server does not say. It needs no ranges.
func Download(ctx context.Context, config Config, sink Sink, progress func(done, total int64)) (Identity, error) {
	s, err := newSource(config)
	if err != nil {
		return Identity{}, err
	}
	defer s.Close()
	if config.RetryTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, config.RetryTimeout)
		defer cancel()
	}
	w := waiter{source: s}
	defer w.end()
	d := download{source: s, sink: sink, progress: progress, total: -1}
	for failures, refused := 0, 0; ; {
		number := failures % len(s.servers)
		before := d.done
		err := d.attempt(ctx, s.servers[number])
		if err == nil {
			return Identity{Size: d.done, ETag: d.etag, URL: number, Modified: d.modified}, nil
		}
		if own, ok := errors.AsType[failed](err); ok {
			return Identity{}, own.error
		}
		if d.done > before {
			failures = 0
			continue
		}
		failures++
		if final(err) {
			refused++
		}
		if ctx.Err() != nil || refused == len(s.servers) {
			return Identity{}, err
		}
		if failures%len(s.servers) != 0 {
			continue
		}
		refused = 0
		w.begin(err.Error())
		if !s.pause(ctx, err, failures/len(s.servers)) {
			return Identity{}, fmt.Errorf("%w: last failure: %w", context.Cause(ctx), err)
		}
	}
}

// Retry repeats a request until it succeeds, a server refuses it, or ctx or the timeout ends; a timeout of 0 never does. waiting is called with the
// reason before each pause.
func Retry(ctx context.Context, timeout time.Duration, waiting func(reason string), request func(context.Context) error) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	s := &Source{timing: usualTiming()}
	for round := 0; ; round++ {
		err := request(ctx)
		if err == nil || final(err) {
			return err
		}
		err = plain(err)
		waiting(err.Error())
		if !s.pause(ctx, err, round) {
			return fmt.Errorf("%w: last failure: %w", context.Cause(ctx), err)
		}
	}
}

// final tells whether a server has said no: to ask again is no use.
func final(err error) bool {
	refusal, ok := errors.AsType[*Refusal](err)
	return ok && refusal.Status != http.StatusRequestTimeout && refusal.Status < 500
}

// download is one object under way.
type download struct {
	source   *Source
	sink     Sink
	progress func(done, total int64)

	server   *server // that the bytes so far came from
	etag     string  // strong, or empty
	modified string
	done     int64
	total    int64 // -1 if unknown
}

// attempt continues with a server, or begins again if that server cannot.
func (d *download) attempt(ctx context.Context, server *server) error {
	if d.done > 0 && (d.server != server || d.etag == "") {
		if err := d.restart(); err != nil {
			return err
		}
	}
	d.server = server
	first := d.done
	return d.source.request(ctx, server, first, -1, func(r *http.Response) error {
		resumes := first > 0 && r.StatusCode == http.StatusPartialContent
		if !resumes {
			if err := d.begin(server, r); err != nil {
				return err
			}
		} else if a, err := d.source.examine(server, r, first, d.total-1); err != nil {
			return err
		} else if a.etag != d.etag || a.total != d.total {
			return errors.Join(d.restart(), errors.New("the object changed during the download"))
		}
		return d.copy(r.Body)
	})
}

func (d *download) restart() error {
	d.done, d.total, d.etag = 0, -1, ""
	if err := d.sink.Restart(); err != nil {
		return failed{err}
	}
	return nil
}

// begin examines the answer to a request without a range, or one that the server answers as such.
func (d *download) begin(server *server, r *http.Response) error {
	if r.StatusCode != http.StatusOK {
		_, err := d.source.examine(server, r, 0, -1)
		if err == nil {
			err = &Refusal{URL: server.shown, Status: r.StatusCode, Reason: "an unexpected part of the object"}
		}
		return err
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return &Refusal{URL: server.shown, Reason: fmt.Sprintf("the server sent %q-encoded data though it was asked for none", encoding)}
	}
	if d.done > 0 {
		if err := d.restart(); err != nil {
			return err
		}
	}
	d.total, d.etag, d.modified = r.ContentLength, strong(r.Header.Get("ETag")), r.Header.Get("Last-Modified")
	server.mu.Lock()
	server.etag = d.etag
	server.mu.Unlock()
	return nil
}

func (d *download) copy(body io.Reader) error {
	buffer := make([]byte, 256<<10)
	for {
		n, err := body.Read(buffer)
		if n > 0 {
			if _, err := d.sink.Write(buffer[:n]); err != nil {
				return failed{err}
			}
			d.done += int64(n)
			d.source.fetched.Add(int64(n))
			d.progress(d.done, d.total)
		}
		switch {
		case err == io.EOF && d.total >= 0 && d.done < d.total:
			return io.ErrUnexpectedEOF
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}
