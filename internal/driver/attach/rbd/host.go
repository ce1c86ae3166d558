package rbd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/driver/hostport"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// The usual ports of monitors, by version of the messenger's protocol.
const (
	portV1 = 6789
	portV2 = 3300
)

// addAt notes a fault at an element of a list.
func addAt(faults *errs.Faults, path string, i int, text string) {
	faults.Add(path+"["+strconv.Itoa(i)+"]", "%s", text)
}

// parseHost reads the name or the address of a monitor. The kernel takes no zones.
func parseHost(text string) (hostport.Host, error) {
	h, err := hostport.Parse(text)
	if err == nil && h.Addr.Zone() != "" {
		err = errors.New("must be an address without a zone")
	}
	return h, err
}

// resolve returns the addresses of hosts with their ports, in their order, each once. Of a cluster's monitors some may be
// down: what can't be resolved is named in unknown, and is an error only if nothing can.
func (d *Driver) resolve(ctx context.Context, hosts []string, usual uint16) (all []netip.AddrPort, unknown []string, err error) {
	for _, text := range hosts {
		h, err := parseHost(text)
		if err != nil {
			return nil, nil, errs.New(errs.Invalid, "%q %w", text, err)
		}
		addrs := []netip.Addr{h.Addr}
		if h.Name != "" {
			if addrs, err = d.resolver.LookupNetIP(ctx, "ip", h.Name); err != nil {
				unknown = append(unknown, unresolved(h.Name, err))
				continue
			}
		}
		for _, addr := range addrs {
			if full := netip.AddrPortFrom(addr.Unmap(), cmp.Or(h.Port, usual)); !slices.Contains(all, full) {
				all = append(all, full)
			}
		}
	}
	if len(all) == 0 {
		class := errs.Remote
		if ctx.Err() != nil {
			class = errs.Deadline
		}
		return nil, nil, errs.New(class, "%s", strings.Join(unknown, "; "))
	}
	return all, unknown, nil
}

func unresolved(name string, err error) string {
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return fmt.Sprintf("resolve %s: no such host", name)
	}
	return fmt.Sprintf("resolve %s: %v", name, err)
}
