package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"
)

// handshakeTimeout is the longest time for the handshake of https.
const handshakeTimeout = 10 * time.Second

// noCertificate is why a client without a certificate is refused where --tls-ca asks for one.
const noCertificate = "a client certificate is required that one of the authorities of --tls-ca has signed"

// secure is a listener for https whose connections have their handshake behind them. Until then a connection counts among strangers.
type secure struct {
	*clientListener
	config  *tls.Config
	timeout time.Duration

	start  sync.Once
	life   context.Context // until it is closed
	end    context.CancelFunc
	ready  chan net.Conn
	failed chan error
}

func newSecure(e *clientListener, config *tls.Config, timeout time.Duration) *secure {
	if timeout <= 0 || timeout > handshakeTimeout {
		timeout = handshakeTimeout
	}
	s := &secure{clientListener: e, config: config, timeout: timeout, ready: make(chan net.Conn), failed: make(chan error)}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

// Accept returns the next connection that is encrypted.
func (s *secure) Accept() (net.Conn, error) {
	s.start.Do(func() { go s.run() })
	select {
	case conn := <-s.ready:
		return conn, nil
	case err := <-s.failed:
		return nil, err
	case <-s.life.Done():
		return nil, net.ErrClosed
	}
}

// Close ends Accept and all handshakes.
func (s *secure) Close() error {
	s.end()
	return s.clientListener.Close()
}

func (s *secure) run() {
	for {
		conn, err := s.clientListener.Accept()
		if err == nil {
			go s.shake(conn.(*clientConn))
			continue
		}
		select {
		case s.failed <- err:
		case <-s.life.Done():
			return
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// shake does the handshake of a connection and hands it out.
func (s *secure) shake(v *clientConn) {
	conn := tls.Server(v, s.config)
	ctx, cancel := context.WithTimeout(s.life, s.timeout)
	err := conn.HandshakeContext(ctx)
	cancel()
	if err != nil || !v.prove(conn.ConnectionState()) {
		_ = v.Close() // there is nobody to tell
		return
	}
	select {
	case s.ready <- conn:
	case <-s.life.Done():
		_ = v.Close()
	}
}

// prove looks at the certificate of a client, if that decides who it is, and returns false if the connection can't stay.
func (v *clientConn) prove(state tls.ConnectionState) bool {
	if !v.listener.proves {
		return true // it was decided before
	}
	if len(state.VerifiedChains) == 0 {
		v.client.Refused = noCertificate
	}
	return v.settle()
}
