package daemon

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"time"
)

// handshakeTimeout is the longest time for the handshake of https.
const handshakeTimeout = 10 * time.Second

// noCertificate is why a client without a certificate is refused where --tls-ca asks for one.
const noCertificate = "a client certificate is required that one of the authorities of --tls-ca has signed"

// secure returns a listener for https. net/http does the handshake of each connection in its own goroutine.
func secure(l *clientListener, certificates *certificates, timeout time.Duration) net.Listener {
	if l.handshake = timeout; timeout <= 0 || timeout > handshakeTimeout {
		l.handshake = handshakeTimeout
	}
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			config := certificates.current.Load().Clone() // each connection keeps the certificates that it began with
			config.VerifyConnection = hello.Conn.(*clientConn).verify
			return config, nil
		},
	})
}

// verify checks the certificate of a client, if that decides who it is. An error ends the handshake and the connection.
func (v *clientConn) verify(state tls.ConnectionState) error {
	switch {
	case !v.handshake.Stop():
		return os.ErrDeadlineExceeded
	case !v.listener.proves: // the listener has identified it
		return nil
	case len(state.VerifiedChains) == 0:
		v.client.Refused = noCertificate
	}
	if !v.admit() {
		return errors.New("the client has too many connections")
	}
	return nil
}
