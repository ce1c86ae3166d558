package daemon

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kraken-hpc/imageapi/internal/api"
	"github.com/kraken-hpc/imageapi/internal/slots"
)

// maxRefused is how many connections clients can have open, all together, that may send no requests. They are told so, but
// must not take the descriptors of those that may.
const maxRefused = 16

// door finds out about each connection whose it is, and lets no client have too many.
type door struct {
	cfg          Config
	certificates *certificates // nil without https
	users        []uint32      // who may use loopback
	held         *slots.Slots  // connections, by client
	refused      *slots.Slots  // connections of those that may send no requests
	complaints   *complaints
	log          *slog.Logger
}

// newDoor looks up the users that cfg names.
func newDoor(cfg Config, certificates *certificates, log *slog.Logger) (*door, error) {
	d := &door{
		cfg: cfg, certificates: certificates, users: []uint32{0}, log: log,
		held: slots.New(cfg.Limits.Conns), refused: slots.New(maxRefused), complaints: &complaints{log: log},
	}
	for _, name := range cfg.Listen.Users {
		id, err := userID(name)
		if err != nil {
			return nil, fmt.Errorf("--allow-user: %w", err)
		}
		d.users = append(d.users, uint32(id))
	}
	return d, nil
}

// access is what holds for requests, whatever the connection.
func (d *door) access() api.Access {
	a := api.Access{Names: d.cfg.TLS.Clients, ReadOnly: d.cfg.TLS.ReadOnly, Requests: d.cfg.Limits.Requests}
	for _, host := range d.cfg.Listen.Hosts {
		a.Hosts = append(a.Hosts, strings.ToLower(host))
	}
	if d.certificates != nil {
		a.Covers = d.certificates.covers
	}
	return a
}

// guard puts the door before listeners.
func (d *door) guard(listeners []listener, ours containers) []listener {
	guarded := slices.Clone(listeners)
	for i, l := range guarded {
		guarded[i].Listener = d.before(l, ours)
	}
	return guarded
}

func (d *door) before(l listener, ours containers) net.Listener {
	e := &entrance{Listener: l.Listener, door: d, closed: make(chan struct{})}
	if l.limit > 0 {
		e.places = make(chan struct{}, l.limit)
	}
	switch {
	case l.scheme == schemeUnix:
		e.identify = unixClient
	case d.cfg.Listen.Anyone, l.scheme == schemeHTTPS && d.cfg.TLS.CA != "":
		e.identify = tcpClient
	default:
		k := loopbackClients{users: d.users, ours: ours}
		if d.cfg.Listen.Containers {
			k.ours = nil
		}
		e.identify = k.identify
	}
	if l.scheme == schemeHTTPS {
		return tls.NewListener(e, d.certificates.config())
	}
	return e
}

// entrance is a listener that knows its clients.
type entrance struct {
	net.Listener
	door     *door
	identify func(net.Conn) *api.Client
	places   chan struct{} // one for each connection; nil for any number
	once     sync.Once
	closed   chan struct{}
}

// Accept returns the next connection that may stay.
func (e *entrance) Accept() (net.Conn, error) {
	for {
		if !e.enter() {
			return nil, net.ErrClosed
		}
		conn, err := e.Listener.Accept()
		if err != nil {
			e.leave()
			return nil, err
		}
		if known := e.receive(conn); known != nil {
			return known, nil
		}
		_ = conn.Close() // there is nobody to tell
		e.leave()
	}
}

// receive finds out whose conn is; nil means that its client has too many.
func (e *entrance) receive(conn net.Conn) net.Conn {
	client, counted := e.identify(conn), e.door.held
	if client.Refused != "" {
		e.door.complaints.add("request refused", client)
		counted = e.door.refused
		client.Key = "refused"
	}
	if !counted.Take(client.Key) {
		e.door.complaints.add("connection closed: this client has too many (--client-connections)", client)
		return nil
	}
	return &visit{Conn: conn, client: client, end: sync.OnceFunc(func() {
		counted.Give(client.Key)
		e.leave()
	})}
}

// enter waits for a place, or returns false once e is closed.
func (e *entrance) enter() bool {
	if e.places == nil {
		return true
	}
	select {
	case e.places <- struct{}{}:
		return true
	case <-e.closed:
		return false
	}
}

func (e *entrance) leave() {
	if e.places != nil {
		<-e.places
	}
}

// Close ends Accept.
func (e *entrance) Close() error {
	e.once.Do(func() { close(e.closed) })
	return e.Listener.Close()
}

// visit is a connection of a client that is known.
type visit struct {
	net.Conn
	client *api.Client
	end    func()
}

// Close also makes place for another one.
func (v *visit) Close() error {
	defer v.end()
	return v.Conn.Close()
}

// withClient tells the API who sends the requests of a connection.
func withClient(ctx context.Context, conn net.Conn) context.Context {
	if encrypted, ok := conn.(*tls.Conn); ok {
		conn = encrypted.NetConn()
	}
	if v, ok := conn.(*visit); ok {
		ctx = api.WithClient(ctx, v.client)
	}
	return ctx
}

// complaints logs what clients do that they should not, no more than once a second: they can't fill the log.
type complaints struct {
	log *slog.Logger

	mu      sync.Mutex // protects last and skipped
	last    time.Time
	skipped int
}

func (c *complaints) add(what string, client *api.Client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Sub(c.last) < time.Second {
		c.skipped++
		return
	}
	attrs := []slog.Attr{{Key: "client", Value: slog.GroupValue(client.Who...)}}
	if client.Refused != "" {
		attrs = append(attrs, slog.String("why", client.Refused))
	}
	if c.skipped > 0 {
		attrs = append(attrs, slog.Int("others", c.skipped))
	}
	c.log.LogAttrs(context.Background(), slog.LevelWarn, what, attrs...)
	c.last, c.skipped = now, 0
}

// userID returns the number of a user who is given by name or number.
func userID(name string) (int, error) {
	if u, err := user.Lookup(name); err == nil {
		name = u.Uid
	}
	return number(name, "user")
}

// groupID returns the number of a group that is given by name or number.
func groupID(name string) (int, error) {
	if g, err := user.LookupGroup(name); err == nil {
		name = g.Gid
	}
	return number(name, "group")
}

func number(name, what string) (int, error) {
	id, err := strconv.ParseUint(name, 10, 32)
	if err != nil || id == 1<<32-1 {
		return 0, fmt.Errorf("no %s is called %q: give the name of one, or a number", what, name)
	}
	return int(id), nil
}
