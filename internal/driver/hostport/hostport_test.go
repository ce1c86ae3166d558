package hostport_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver/hostport"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"mon": "mon/invalid IP/0", "mon.example.org:3300": "mon.example.org/invalid IP/3300", "a_b-c.": "a_b-c./invalid IP/0",
		"192.0.2.7": "/192.0.2.7/0", "192.0.2.7:6789": "/192.0.2.7/6789",
		"2001:db8::7": "/2001:db8::7/0", "[2001:db8::7]": "/2001:db8::7/0", "[2001:db8::7]:3300": "/2001:db8::7/3300",
		"fe80::1%eth0": "/fe80::1%eth0/0", "[fe80::1%eth0]:1": "/fe80::1%eth0/1",
		"": "", ":6789": "", "mon:": "", "mon:0": "", "mon:65536": "", "mon:x": "", "mon:1:2": "", "a b": "", "a,b": "", "a=b": "", "-a": "", "a/b": "",
		"[192.0.2.7]": "", "[2001:db8::7": "", "2001:db8::7]": "", "[mon]": "", "[mon]:1": "", "::%]": "", "v1:192.0.2.7:6789": "",
		"[]": "", "[]:1": "", "[[::1]]:1": "", "mön": "",
	} {
		h, err := hostport.Parse(text)
		got := ""
		if err == nil {
			got = fmt.Sprintf("%s/%s/%d", h.Name, h.Addr, h.Port)
		}
		if got != want {
			t.Errorf("Parse(%q) is %q (%v), want %q", text, got, err, want)
		}
	}
}

// FuzzParse proves that nothing that a kernel would read as something else gets through.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"mon:6789", "[2001:db8::7]:3300", "[[::1]]:1", "1.2.3.4:1:1", "\x00", "a,b", "fe80::1%eth0"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h, err := hostport.Parse(text)
		if err != nil {
			return
		}
		if strings.ContainsAny(text, ", =\t\n\x00/@") || (h.Name == "") != h.Addr.IsValid() {
			t.Fatalf("%q is taken for %+v", text, h)
		}
		if again, err := hostport.Parse(h.String()); err != nil || again.Name != h.Name || again.Addr != h.Addr {
			t.Errorf("%q is %v, which is %v: %v", text, h, again, err)
		}
	})
}
