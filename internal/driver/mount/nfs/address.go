package nfs

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// resolve returns the addresses of a host, the most promising first.
func (m *mounter) resolve(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr}, nil
	}
	addrs, err := m.Resolver.LookupNetIP(ctx, network, host)
	dns, _ := errors.AsType[*net.DNSError](err)
	switch {
	case err == nil:
	case dns != nil && dns.IsNotFound:
		return nil, errs.New(errs.Remote, "find the server: no such host %q: check the name, and this node's /etc/hosts and /etc/resolv.conf", host)
	case ctx.Err() != nil || dns != nil && dns.IsTimeout:
		return nil, errs.New(errs.Deadline, "find the server: the name server does not answer: %w", err)
	default:
		return nil, errs.New(errs.Remote, "find the server: %w", err)
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, nil
}

// ownAddress returns the address by which this node sends to another one. Nothing is sent.
func ownAddress(ctx context.Context, to netip.Addr) (netip.Addr, error) {
	const anyPort = 2049
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp", netip.AddrPortFrom(to, anyPort).String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil // by the type of the network
}

// hasStatd reports whether rpc.statd(8) runs on this node: locks of version 3 need it.
func hasStatd() bool {
	for _, file := range []string{"/run/rpc.statd.pid", "/var/run/rpc.statd.pid"} {
		pid, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		name, _ := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/comm")
		if strings.TrimSpace(string(name)) == "rpc.statd" {
			return true
		}
	}
	return false
}
