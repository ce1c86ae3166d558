package rbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// The usual ports of monitors, by version of the messenger's protocol.
const (
	portV1 = 6789
	portV2 = 3300
)

// host is where a monitor is, as it was given.
type host struct {
	name string     // or
	addr netip.Addr // if it is an address
	port uint16     // 0: the usual one
}

// addAt notes a fault at an element of a list.
func addAt(faults *errs.Faults, path string, i int, text string) {
	faults.Add(path+"["+strconv.Itoa(i)+"]", "%s", text)
}

var errHost = errors.New("must be a name or an address, with a port if wanted: mon.example.org, 192.0.2.7:6789, [2001:db8::7]:6789")

// parseHost takes names and addresses, IPv4 or IPv6, with or without a port.
func parseHost(text string) (host, error) {
	if addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")); err == nil {
		if addr.Zone() != "" || strings.HasPrefix(text, "[") != strings.HasSuffix(text, "]") || strings.HasPrefix(text, "[") && addr.Is4() {
			return host{}, errHost
		}
		return host{addr: addr}, nil
	}
	name, number, found := strings.Cut(text, ":")
	var port uint64
	if strings.HasPrefix(text, "[") || strings.Count(text, ":") > 1 {
		at := strings.LastIndex(text, "]:")
		if at < 0 {
			return host{}, errHost
		}
		name, number, found = text[:at+1], text[at+2:], true
	}
	if found {
		var err error
		if port, err = strconv.ParseUint(number, 10, 16); err != nil || port == 0 {
			return host{}, fmt.Errorf("has the port %.20q; use 1 to 65535", number)
		}
	}
	if found && port != 0 {
		if h, err := parseHost(name); err == nil && h.port == 0 {
			h.port = uint16(port)
			return h, nil
		}
		return host{}, errHost
	}
	if !isName(name) {
		return host{}, errHost
	}
	return host{name: name}, nil
}

// isName tells whether text can be the name of a host (RFC 1123, 2.1, and the underscore).
func isName(text string) bool {
	const longest = 253
	return text != "" && len(text) <= longest && !strings.HasPrefix(text, "-") && !strings.ContainsFunc(text, func(r rune) bool {
		return r != '.' && r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

// resolve returns the addresses of hosts with their ports, in their order, each once. Of a cluster's monitors some may be
// down: what can't be resolved is named in unknown, and is an error only if nothing can.
func (d *Driver) resolve(ctx context.Context, hosts []string, usual uint16) (all []netip.AddrPort, unknown []string, err error) {
	for _, text := range hosts {
		h, err := parseHost(text)
		if err != nil {
			return nil, nil, errs.New(errs.Invalid, "%q %w", text, err)
		}
		addrs := []netip.Addr{h.addr}
		if h.name != "" {
			if addrs, err = d.resolver.LookupNetIP(ctx, "ip", h.name); err != nil {
				unknown = append(unknown, unresolved(h.name, err))
				continue
			}
		}
		for _, addr := range addrs {
			if full := h.at(addr, usual); !slices.Contains(all, full) {
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

func (h host) at(addr netip.Addr, usual uint16) netip.AddrPort {
	port := h.port
	if port == 0 {
		port = usual
	}
	return netip.AddrPortFrom(addr.Unmap(), port)
}

func unresolved(name string, err error) string {
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return fmt.Sprintf("resolve %s: no such host", name)
	}
	return fmt.Sprintf("resolve %s: %v", name, err)
}
