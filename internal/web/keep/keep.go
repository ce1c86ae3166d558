package keep

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/companion"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/web/nbdserve"
	"github.com/kraken-hpc/imageapi/internal/web/source"
	"github.com/kraken-hpc/imageapi/internal/web/window"
)

const (
	// mostRequests and mostReplies bound the requests of the kernel that are answered at a time. nbd.ko has 128 at most.
	mostRequests = 128
	mostReplies  = 8 << 20
	// own is the memory of the program itself: its heap without parts of the image.
	own = 24 << 20
	// countersEvery is how often counters that changed are reported.
	countersEvery = time.Second
)

// Main is the program: it serves until the daemon stops it. name is that of the keeper.
func Main(name string) error {
	c, run, err := companion.Begin(name)
	if err != nil {
		return err
	}
	k := &process{companion: c, changed: make(chan struct{}, 1)}
	ready, err := k.begin(run)
	if err != nil {
		failure := Failure{Text: err.Error(), NoRanges: errors.Is(err, source.ErrNoRanges), Own: k.source == nil && !k.asked}
		if text, failed := Encode(failure); failed == nil {
			c.Failed(text)
		}
		return err
	}
	text, err := Encode(ready)
	if err != nil {
		return err
	}
	c.Ready(text)
	k.poke()
	return k.work()
}

// process is the keeper.
type process struct {
	companion *companion.Companion
	source    *source.Source
	window    *window.Window
	asked     bool // it has asked servers
	changed   chan struct{}

	mu     sync.Mutex // protects what follows
	status Status
	end    context.CancelFunc // of the present socket
}

// begin confines the process and identifies the image.
func (k *process) begin(run wire.Message) (Ready, error) {
	var config Config
	if err := Decode(run, &config); err != nil {
		return Ready{}, errors.New("malformed configuration")
	}
	around, err := surroundings()
	if err != nil {
		return Ready{}, err
	}
	missing, err := confine(config.User, around)
	if err != nil {
		return Ready{}, fmt.Errorf("confine the keeper: %w", err)
	}
	debug.SetMemoryLimit(config.Memory + mostReplies + own)
	from, err := config.Access.Source()
	if err != nil {
		return Ready{}, err
	}
	if from.TLS == nil {
		from.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if from.TLS.RootCAs == nil {
		from.TLS.RootCAs = x509.NewCertPool()
		from.TLS.RootCAs.AppendCertsFromPEM(around.Roots)
	}
	from.Expect, from.Waiting = config.Expect, k.waiting
	if config.Resume {
		k.source, err = source.Resume(from)
	} else {
		k.asked = true
		k.source, err = source.Open(context.Background(), from)
	}
	if err != nil {
		return Ready{}, err
	}
	identity := k.source.Identity()
	k.window = window.New(k.source, identity.Size, config.Memory, config.ReadAhead)
	return Ready{Identity: identity, Missing: missing}, nil
}

// surroundings reads the first descriptor, and closes the others that the daemon's programs have.
func surroundings() (s Surroundings, err error) {
	file := os.NewFile(wire.FirstFD, "surroundings")
	defer file.Close()
	for _, fd := range []int{wire.ProgramFD, wire.RecordFD} {
		unix.Close(fd)
	}
	data, err := io.ReadAll(io.NewSectionReader(file, 0, 8<<20)) // its offset is shared with other keepers
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	return s, err
}

// work does what daemons say until one says to stop.
func (k *process) work() error {
	ticker := time.NewTicker(countersEvery)
	defer ticker.Stop()
	for {
		select {
		case m, ok := <-k.companion.Commands():
			if !ok {
				return errors.New("no daemon can come any more")
			}
			switch {
			case m.Kind == wire.Stop:
				return nil
			case m.Kind == Socket && len(m.Files) == 1:
				if err := k.serve(m); err != nil {
					return err
				}
			default:
				m.Close()
			}
		case <-k.changed:
			k.report(true)
		case <-ticker.C:
			k.report(false)
		}
	}
}

// serve answers requests over a new socket. The old one is dead: replies to it are dropped, and its fetches continue.
func (k *process) serve(m wire.Message) error {
	number, err := strconv.ParseInt(m.Field(0), 10, 64)
	if err != nil {
		m.Close()
		return nil
	}
	file := os.NewFile(uintptr(m.Files[0]), "device")
	socket, err := net.FileConn(file)
	file.Close()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	k.mu.Lock()
	if k.end != nil {
		k.end()
	}
	k.end = cancel
	k.status.Socket, k.status.Open = number, true
	k.mu.Unlock()
	k.poke()
	go func() {
		defer cancel()
		_ = nbdserve.Serve(ctx, socket, k, nbdserve.Limits{Requests: mostRequests, Bytes: mostReplies}) // whatever ends a socket, the daemon gives another one
		k.mu.Lock()
		if k.status.Socket == number {
			k.status.Open = false
		}
		k.mu.Unlock()
		k.poke()
	}()
	return nil
}

// ReadAt implements nbdserve.Reader.
func (k *process) ReadAt(ctx context.Context, p []byte, offset int64) error {
	err := k.window.ReadAt(ctx, p, offset)
	if changed, ok := errors.AsType[*source.Changed](err); ok {
		k.mu.Lock()
		is := k.status.Changed == ""
		k.status.Changed = changed.Error()
		k.mu.Unlock()
		if is {
			k.poke()
		}
	}
	return err
}

// waiting implements source.Config.Waiting.
func (k *process) waiting(reason string) {
	k.mu.Lock()
	k.status.Waiting = reason
	k.mu.Unlock()
	k.poke()
}

// poke has the state reported.
func (k *process) poke() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// report reports the state, at any rate or if a counter has changed.
func (k *process) report(anyway bool) {
	requests, fetched := k.source.Counts()
	url := k.source.URL() // the source calls waiting while it is locked
	k.mu.Lock()
	if !anyway && requests == k.status.Requests && fetched == k.status.Fetched {
		k.mu.Unlock()
		return
	}
	k.status.Requests, k.status.Fetched, k.status.URL = requests, fetched, url
	text, err := Encode(k.status)
	k.mu.Unlock()
	if err == nil {
		k.companion.Status(text)
	}
}
