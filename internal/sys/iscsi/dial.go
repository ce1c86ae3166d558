package iscsi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// attemptTime is how long one address of a portal may take to let us in. It is shorter where the time left, shared by
	// those that are still to be tried, is.
	attemptTime = 10 * time.Second
	// maxMoves is how often a target may send us elsewhere in one login.
	maxMoves = 4
)

// reach tries all addresses of all portals in their order until try succeeds with one. The error names each of them.
func (c *Config) reach(ctx context.Context, try func(context.Context, *net.TCPConn) error) error {
	var failed []error
	portals, moves := slices.Clone(c.Portals), 0
	for len(portals) > 0 {
		portal := portals[0]
		portals = portals[1:]
		err := portal.reach(ctx, len(portals), try)
		if err == nil {
			return nil
		}
		if m, ok := errors.AsType[*moved](err); ok && moves < maxMoves {
			moves++
			portals = slices.Insert(portals, 0, m.to)
		}
		failed = append(failed, err)
		if ctx.Err() != nil {
			break
		}
	}
	return c.unreached(ctx, failed)
}

// unreached makes one error of several. Its class is that of the first: what is configured first counts most.
func (c *Config) unreached(ctx context.Context, failed []error) error {
	class := ClassOf(failed[0])
	if cause := context.Cause(ctx); errors.Is(cause, context.DeadlineExceeded) {
		class = Deadline
	} else if cause != nil && class == "" {
		class = ClassOf(cause)
	}
	return fail(class, "log in to %s: %w", c.Target, errors.Join(failed...))
}

func (p Portal) reach(ctx context.Context, others int, try func(context.Context, *net.TCPConn) error) error {
	addresses, err := p.resolve(ctx)
	if err != nil {
		return err
	}
	for i, address := range addresses {
		if err = p.attempt(ctx, address, others+len(addresses)-i, try); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return err
}

// resolve returns the addresses of a portal, in the order of the system's preference.
func (p Portal) resolve(ctx context.Context) ([]netip.AddrPort, error) {
	if a, err := netip.ParseAddr(p.Host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a, uint16(p.Port))}, nil
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", p.Host)
	if err != nil {
		class := Remote
		if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsTimeout {
			class = Deadline
		}
		return nil, fail(class, "resolve the host of portal %s: %w", p, err)
	}
	all := make([]netip.AddrPort, len(found))
	for i, a := range found {
		all[i] = netip.AddrPortFrom(a.Unmap(), uint16(p.Port))
	}
	return all, nil
}

// attempt connects to one address and hands the connection to try. left is how many may still be tried, this one included.
func (p Portal) attempt(ctx context.Context, address netip.AddrPort, left int, try func(context.Context, *net.TCPConn) error) error {
	limit := attemptTime
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)/time.Duration(left))
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address.String())
	if err != nil {
		return unconnected(address, err)
	}
	defer conn.Close() // the kernel has a reference of its own
	if err := try(ctx, conn.(*net.TCPConn)); err != nil {
		return fmt.Errorf("portal %s: %w", address, err)
	}
	return nil
}

func unconnected(address netip.AddrPort, err error) error {
	timeout, _ := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return fail(Remote, "portal %s: no server listens there: %w", address, unix.ECONNREFUSED)
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return fail(Remote, "portal %s: the address cannot be reached: %w", address, err)
	case timeout != nil && timeout.Timeout(): // the dialer's own, the context's, or ETIMEDOUT
		return fail(Deadline, "portal %s: no response: %w", address, unix.ETIMEDOUT)
	}
	return fail(Remote, "portal %s: %w", address, err)
}
