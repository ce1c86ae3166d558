package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/metrics"
)

// certificates is what https shows and demands. A reload replaces it; open connections keep the certificates that they began with.
type certificates struct {
	cfg     TLS
	current atomic.Pointer[tls.Config]
	latest  atomic.Pointer[metrics.Reload]
}

// loadCertificates reads them; without https there are none, and the result is nil.
func loadCertificates(cfg Config) (*certificates, error) {
	if !cfg.uses(schemeHTTPS) {
		return nil, nil
	}
	c := &certificates{cfg: cfg.TLS}
	return c, c.load()
}

// covers reports whether the certificate that is shown now is for a host.
func (c *certificates) covers(host string) bool {
	leaf := c.current.Load().Certificates[0].Leaf
	return leaf != nil && leaf.VerifyHostname(host) == nil
}

// metrics returns n with the numbers about certificates, if there are any.
func (c *certificates) metrics(n metrics.Node) metrics.Node {
	if c != nil {
		n.Expiry = func() time.Time { return c.current.Load().Certificates[0].Leaf.NotAfter }
		n.Reload = func() metrics.Reload { return *c.latest.Load() }
	}
	return n
}

// reloadAt reloads them at each signal until ctx ends, and reports that to the service manager.
func (c *certificates) reloadAt(ctx context.Context, signals <-chan os.Signal, service Service, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		service.reloads(func() { c.reload(log) })
	}
}

// reload reads them again. If that fails, the current ones stay in use.
func (c *certificates) reload(log *slog.Logger) {
	if c == nil {
		log.Info("certificate reload skipped, https is off")
		return
	}
	if err := c.load(); err != nil {
		c.latest.Store(&metrics.Reload{At: c.latest.Load().At})
		log.Error("certificate reload failed, current certificates kept", logkey.Error, err)
		return
	}
	log.Info("certificates reloaded", logkey.Certificate, c.cfg.Certificate, logkey.Authorities, c.cfg.CA)
}

func (c *certificates) load() error {
	pair, err := tls.LoadX509KeyPair(c.cfg.Certificate, c.cfg.Key)
	if err != nil {
		return fmt.Errorf("load --tls-certificate and --tls-key: %w", err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if c.cfg.CA != "" {
		if config.ClientCAs, err = authorities(c.cfg.CA); err != nil {
			return fmt.Errorf("load --tls-ca: %w", err)
		}
		config.ClientAuth = tls.VerifyClientCertIfGiven // without one a client gets the documentation alone: see secure
	}
	c.current.Store(config)
	c.latest.Store(&metrics.Reload{OK: true, At: time.Now()})
	return nil
}

func authorities(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return pool, nil
}
