package nfs_test

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest/mounttest"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/nfs"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

func plan(def *models.MountNfs) (driver.Unit, error) {
	var faults errs.Faults
	unit, _ := nfs.New(nfs.Options{}).Plan(driver.Object{Mount: &models.Mount{Nfs: def}}, &faults)
	return unit, faults.Err()
}

func TestPlan(t *testing.T) {
	t.Parallel()
	unit, err := plan(&models.MountNfs{Host: new("server"), Path: new("/a b:c")})
	if err != nil {
		t.Fatal(err)
	}
	out := models.Mount{}
	unit.Show(driver.Object{Mount: &out}, driver.Status{}, nil)
	if got := mounttest.JSON(t, out.Nfs); got != `{"host":"server","path":"/a b:c","ro":false,"version":"4.2"}` {
		t.Errorf("it shows %s", got)
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		def  models.MountNfs
		want string // a part of the text, or empty if there is no fault
	}{
		"no host":           {models.MountNfs{Host: new("")}, "nfs.host: is required"},
		"host with a path":  {models.MountNfs{Host: new("server:/export")}, `nfs.host: "server:/export" is neither a name nor an address`},
		"host with a comma": {models.MountNfs{Host: new("a,b")}, "nfs.host: "},
		"host with a blank": {models.MountNfs{Host: new("a b")}, "nfs.host: "},
		"host, odd":         {models.MountNfs{Host: new("[a]")}, "nfs.host: "},
		"IPv6":              {models.MountNfs{Host: new("fe80::1%eth0")}, ""},
		"IPv6, brackets":    {models.MountNfs{Host: new("[2001:db8::1]")}, ""},
		"no path":           {models.MountNfs{Path: new("")}, "nfs.path: is required"},
		"relative path":     {models.MountNfs{Path: new("export")}, `nfs.path: "export" must be absolute`},
		"NUL in the path":   {models.MountNfs{Path: new("/a\x00b")}, "nfs.path: contains a NUL"},
		"long path":         {models.MountNfs{Path: new("/" + strings.Repeat("x", 250))}, "nfs.path: is too long: host and path together may have 254 bytes"},
		"longest path":      {models.MountNfs{Path: new("/" + strings.Repeat("x", 247))}, ""},
		"version 2":         {models.MountNfs{Version: new("2")}, `nfs.version: "2" is not a version that can be mounted`},
		"version 4.3":       {models.MountNfs{Version: new("4.3")}, "use 3, 4.0, 4.1 or 4.2"},
		"ro and rw":         {models.MountNfs{Ro: new(true), Options: []string{"hard", "rw"}}, `nfs.options[1]: "rw" contradicts the field ro`},
		"nameless option":   {models.MountNfs{Options: []string{"=1"}}, `nfs.options[0]: option "=1" has no name`},
		"wrong kind":        {models.MountNfs{Host: new("127.0.0.1"), Options: []string{"proto=tcp6"}}, "nfs.host: 127.0.0.1 cannot be reached: the option proto"},
		"right kind":        {models.MountNfs{Host: new("::1"), Options: []string{"proto=tcp6"}}, ""},
		"several":           {models.MountNfs{Version: new("5"), Options: []string{"bg"}}, `nfs.options[0]: "bg" cannot be used: a mount is complete when the request returns; create it again if it fails; nfs.version: "5"`},
		"in one string":     {models.MountNfs{Options: []string{"hard,vers=3"}}, `nfs.options[0]: "vers=3" cannot be used: use the field version`},
	} {
		t.Run(name, func(t *testing.T) {
			if c.def.Host == nil {
				c.def.Host = new("server")
			}
			if c.def.Path == nil {
				c.def.Path = new("/export")
			}
			switch _, err := plan(&c.def); {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	if _, err := plan(nil); err == nil {
		t.Error("a mount without its definition")
	}
}

// TestRefusedOptions: no option is left out silently.
func TestRefusedOptions(t *testing.T) {
	t.Parallel()
	for _, option := range []string{
		"bg", "fg", "retry=1", "sloppy", "addr=1.2.3.4", "clientaddr=1.2.3.4", "vers=3", "nfsvers=3", "minorversion=1", "v3", "v4.2", "source=x",
	} {
		_, err := plan(&models.MountNfs{Host: new("server"), Path: new("/"), Options: []string{option}})
		if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), `"`+option+`" cannot be used: `) {
			t.Errorf("%s: %v", option, err)
		}
	}
}

// TestNoSuchHost asks a name server that knows no name, and one that does not answer.
func TestNoSuchHost(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answers bool
		class   errs.Class
		want    string
	}{
		"unknown": {true, errs.Remote, `find the server: no such host "none.invalid": check the name`},
		"silent":  {false, errs.Deadline, "find the server: the name server does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			if order, err := os.ReadFile("/etc/nsswitch.conf"); err == nil && !strings.Contains(string(order), "dns") {
				t.Skip("this machine asks no name server: /etc/nsswitch.conf")
			}
			addr := nameServer(t, c.answers)
			resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "udp", addr)
			}}
			var faults errs.Faults
			def := models.MountNfs{Host: new("none.invalid"), Path: new("/")}
			unit, _ := nfs.New(nfs.Options{Resolver: resolver}).Plan(driver.Object{Mount: &models.Mount{Nfs: &def}}, &faults)
			_, err := unit.Up(within(t, 500e6), place)
			if !errs.Is(err, c.class) || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v: %v", errs.ClassOf(err), err)
			}
		})
	}
}

// nameServer says of all names that there is none.
func nameServer(t *testing.T, answers bool) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		for buf := make([]byte, 512); ; {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if answers {
				buf[2], buf[3] = buf[2]|0x80, 3 // a response, NXDOMAIN (RFC 1035, 4.1.1)
				_, _ = conn.WriteTo(buf[:n], from)
			}
		}
	}()
	return conn.LocalAddr().String()
}
