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
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/slots"
)

// How many connections clients can have open, all together, that cannot send requests, whose handshake is not done, and for monitoring.
// They must not use the descriptors of clients that may send requests.
const (
	maxRefused    = 16
	maxHandshakes = 256
	maxMonitoring = 32
)

// admission identifies the client of each connection, and lets no client have too many.
type admission struct {
	cfg          Config
	certificates *certificates // nil without https
	users        []uint32      // that may use loopback
	held         *slots.Slots  // connections, by client
	refused      *pool         // connections of those that may send no requests
	refusals     *refusalLog
	log          *slog.Logger
}

// newAdmission looks up the users that cfg names.
func newAdmission(cfg Config, certificates *certificates, log *slog.Logger) (*admission, error) {
	d := &admission{
		cfg: cfg, certificates: certificates, users: []uint32{0}, log: log,
		held: slots.New(cfg.Limits.Conns), refused: newPool(maxRefused), refusals: &refusalLog{log: log},
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
func (d *admission) access() api.Access {
	a := api.Access{Names: d.cfg.TLS.Clients, ReadOnly: d.cfg.TLS.ReadOnly, Requests: d.cfg.Limits.Requests}
	for _, host := range d.cfg.Listen.Hosts {
		a.Hosts = append(a.Hosts, strings.ToLower(host))
	}
	if d.certificates != nil {
		a.Covers = d.certificates.covers
	}
	return a
}

// guard has listeners admit connections.
func (d *admission) guard(listeners []listener, ours containers) []listener {
	guarded := slices.Clone(listeners)
	for i, l := range guarded {
		guarded[i].Listener = d.before(l, ours)
	}
	return guarded
}

func (d *admission) before(l listener, ours containers) net.Listener {
	e := &clientListener{Listener: l.Listener, admission: d, closed: make(chan struct{})}
	if l.limit > 0 {
		e.slots = make(chan struct{}, l.limit)
	}
	switch {
	case l.scheme == schemeUnix:
		e.identify = unixClient
	case l.scheme == schemeMetrics:
		e.identify, e.pool = tcpClient, newPool(maxMonitoring)
	case l.scheme == schemeHTTPS && d.cfg.TLS.CA != "":
		e.identify, e.pool, e.proves = countedClient, newPool(maxHandshakes), true
	case d.cfg.Listen.Anyone:
		e.identify = tcpClient
	default:
		k := loopbackClients{users: d.users, ours: ours}
		if d.cfg.Listen.Containers {
			k.ours = nil
		}
		e.identify = k.identify
	}
	if l.scheme == schemeHTTPS {
		return secure(e, d.certificates, d.cfg.Limits.Header)
	}
	return e
}

// clientListener is a listener that knows its clients.
type clientListener struct {
	net.Listener
	admission *admission
	identify  func(net.Conn) *api.Client
	pool      *pool         // of connections whose client is not identified; nil if a connection identifies its client at once
	proves    bool          // the handshake identifies the client
	handshake time.Duration // how long a handshake can take; 0 without https
	slots     chan struct{} // one for each connection of a client that may send requests; nil for any number
	once      sync.Once
	closed    chan struct{}
}

// Accept returns the next connection that may stay.
func (e *clientListener) Accept() (net.Conn, error) {
	for {
		conn, err := e.Listener.Accept()
		if err != nil {
			return nil, err
		}
		v := &clientConn{Conn: conn, client: e.identify(conn), listener: e}
		if e.handshake > 0 {
			v.handshake = time.AfterFunc(e.handshake, func() { _ = v.Close() })
		}
		if e.pool != nil {
			v.join(e.pool)
			return v, nil
		}
		if v.admit() {
			return v, nil
		}
		_ = v.Close() // the client is gone
	}
}

// acquire waits for a slot, or returns false when e is closed.
func (e *clientListener) acquire() bool {
	if e.slots == nil {
		return true
	}
	select {
	case e.slots <- struct{}{}:
		return true
	case <-e.closed:
		return false
	}
}

func (e *clientListener) free() {
	if e.slots != nil {
		<-e.slots
	}
}

// Close ends Accept.
func (e *clientListener) Close() error {
	e.once.Do(func() { close(e.closed) })
	return e.Listener.Close()
}

// clientConn is a connection of a client that is known.
type clientConn struct {
	net.Conn
	client    *api.Client
	listener  *clientListener
	handshake *time.Timer // closes it; nil without https

	mu       sync.Mutex // protects what follows
	closed   bool
	releases []func() // of the places that it occupies
}

// admit counts v for its client, now that it is identified, and returns false if the client has too many.
func (v *clientConn) admit() bool {
	admission := v.listener.admission
	if v.client.Refused != "" {
		admission.refusals.refused(v.client)
		v.release()
		v.join(admission.refused)
		return true
	}
	if !admission.held.Take(v.client.Key) {
		admission.refusals.closed(v.client, "the client has more than --client-connections")
		return false
	}
	v.release()
	v.onClose(func() { admission.held.Give(v.client.Key) })
	if !v.listener.acquire() {
		return false
	}
	v.onClose(v.listener.free)
	return true
}

// join adds v to a pool, and closes the connection that it evicts.
func (v *clientConn) join(p *pool) {
	evicted := p.add(v)
	v.onClose(func() { p.remove(v) })
	if evicted != nil {
		v.listener.admission.refusals.closed(evicted.client, "too many connections of clients that may not send requests")
		_ = evicted.Close() // the client is gone
	}
}

// onClose calls release when v no longer counts, or at once if it is closed.
func (v *clientConn) onClose(release func()) {
	v.mu.Lock()
	closed := v.closed
	if !closed {
		v.releases = append(v.releases, release)
	}
	v.mu.Unlock()
	if closed {
		release()
	}
}

// release releases the places that v occupies.
func (v *clientConn) release() {
	v.mu.Lock()
	all := v.releases
	v.releases = nil
	v.mu.Unlock()
	for _, release := range all {
		release()
	}
}

// Close also releases the places that v occupies.
func (v *clientConn) Close() error {
	defer v.release()
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	return v.Conn.Close()
}

// withClient passes the client of a connection to the API.
func withClient(ctx context.Context, conn net.Conn) context.Context {
	if encrypted, ok := conn.(*tls.Conn); ok {
		conn = encrypted.NetConn()
	}
	if v, ok := conn.(*clientConn); ok {
		ctx = api.WithClient(ctx, v.client)
	}
	return ctx
}

// refusalLog logs refused requests and closed connections, at most one line a second: clients cannot fill the log.
type refusalLog struct {
	log *slog.Logger

	mu      sync.Mutex // protects last and skipped
	last    time.Time
	skipped int
}

func (l *refusalLog) refused(client *api.Client) {
	if attrs := l.attrs(client, client.Refused); attrs != nil {
		l.log.LogAttrs(context.Background(), slog.LevelWarn, "request refused", attrs...)
	}
}

func (l *refusalLog) closed(client *api.Client, reason string) {
	if attrs := l.attrs(client, reason); attrs != nil {
		l.log.LogAttrs(context.Background(), slog.LevelWarn, "connection closed", attrs...)
	}
}

// attrs returns the attributes of a line, or nil if it is too early for one.
func (l *refusalLog) attrs(client *api.Client, reason string) []slog.Attr {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.last) < time.Second {
		l.skipped++
		return nil
	}
	attrs := []slog.Attr{{Key: logkey.Client, Value: slog.GroupValue(client.Who...)}, slog.String(logkey.Reason, reason)}
	if l.skipped > 0 {
		attrs = append(attrs, slog.Int(logkey.Skipped, l.skipped))
	}
	l.last, l.skipped = now, 0
	return attrs
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
