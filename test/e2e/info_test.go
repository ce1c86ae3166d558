package e2e

import (
	"net/http"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/models"
)

// TestInfo reads what the server knows of itself and of the node, and holds it against the node: what it calls missing is refused as
// unsupported, and what it calls available is not.
func TestInfo(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--max-objects", "77", "--stop-timeout", "3s")
	var info models.Info
	n.Must(t, http.StatusOK, http.MethodGet, "/info", nil, &info)
	var name unix.Utsname
	must(t, unix.Uname(&name))
	if info.Kernel != unix.ByteSliceToString(name.Release[:]) || info.APIVersion != "0.3.0" || info.Version == "" || info.StartedAt == nil {
		t.Errorf("it describes itself as %+v", info)
	}
	if l := info.Limits; l.Objects != 77 || l.StopTimeout != 3 || l.CreateTimeout != 25 || l.Body != 1<<20 {
		t.Errorf("limits are %+v", l)
	}
	if s := info.Space; len(s) == 0 || s[0].Path != n.RunDir || s[0].Size < s[0].Free || s[0].Free <= 0 {
		t.Errorf("space is %+v", s)
	}
	named := map[string]*models.InfoDriver{}
	for _, d := range info.Drivers {
		named[d.Class+" "+d.Kind] = d
		if !d.Available && len(d.Missing) == 0 {
			t.Errorf("%s %s is not available, and nothing is missing", d.Class, d.Kind)
		}
	}
	for _, kind := range []string{"attach loopback", "mount bind", "mount overlay", "container "} {
		if d := named[kind]; d == nil || !d.Available {
			t.Errorf("%s is %+v, although tests use it", kind, d)
		}
	}
	tries := map[string]string{
		"attach rbd":   `{"kind":"rbd","rbd":{"monitors":["127.0.0.1:1"],"pool":"p","image":"i","options":{"name":"x","secret":"AQAA8VNlAAAAABAAAAECAwQFBgcICQoLDA0ODw=="}}}`,
		"attach iscsi": `{"kind":"iscsi","iscsi":{"initiator":"iqn.2026-01.a:b","target":"iqn.2026-01.a:c","host":"127.0.0.1"}}`,
		"mount nfs":    `{"kind":"nfs","nfs":{"host":"127.0.0.1","path":"/x"}}`,
	}
	for _, kind := range []string{"attach rbd", "attach iscsi", "mount nfs"} {
		path := map[bool]string{true: "/attach/plan", false: "/mount/plan"}[kind[0] == 'a']
		a, err := n.Do(t.Context(), http.MethodPost, path, tries[kind])
		must(t, err)
		if d := named[kind]; d == nil || d.Available == (a.Status == http.StatusNotImplemented) {
			t.Errorf("%s is %+v, and a dry run returns %d %s", kind, d, a.Status, a.Body)
		}
	}
	if !slices.ContainsFunc(info.Drivers, func(d *models.InfoDriver) bool { return d.Kind == "local" && d.Available && len(d.Missing) <= 1 }) {
		t.Error("an attachment of kind local depends on more than dm-verity")
	}
}
