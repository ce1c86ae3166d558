// Package hostport reads the names and addresses of servers as they stand in definitions, with or without a port.
package hostport

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Host is a server.
type Host struct {
	Name string     // empty if it has an address
	Addr netip.Addr // may have a zone
	Port uint16     // 0: none is given
}

// String returns the name or the address without the port.
func (h Host) String() string {
	if h.Name != "" {
		return h.Name
	}
	return h.Addr.String()
}

var errForm = errors.New("must be a name or an address, with a port if wanted: server.example.org, 192.0.2.7:6789, [2001:db8::7]:6789")

// Parse reads a name or an address. An IPv6 address with a port stands in brackets, and one without may.
func Parse(text string) (h Host, err error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return ofAddr(addr)
	}
	host := text
	if i := strings.LastIndex(text, ":"); i >= 0 && !strings.HasSuffix(text, "]") {
		port, err := strconv.ParseUint(text[i+1:], 10, 16)
		if err != nil || port == 0 {
			return h, fmt.Errorf("has the port %.20q; use 1 to 65535", text[i+1:])
		}
		host, h.Port = text[:i], uint16(port)
	}
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
	bracketed := strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]")
	switch {
	case err == nil && bracketed == addr.Is6():
		full, err := ofAddr(addr)
		full.Port = h.Port
		return full, err
	case err == nil || !isName(host):
		return Host{}, errForm
	}
	h.Name = host
	return h, nil
}

func ofAddr(addr netip.Addr) (Host, error) {
	if addr.Zone() != "" && !isName(addr.Zone()) {
		return Host{}, errForm
	}
	return Host{Addr: addr}, nil
}

// isName reports whether text can be the name of a host (RFC 1123, 2.1, and the underscore) or of an interface.
func isName(text string) bool {
	const longest = 253
	return text != "" && len(text) <= longest && !strings.HasPrefix(text, "-") && !strings.ContainsFunc(text, func(r rune) bool {
		return r != '.' && r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}
