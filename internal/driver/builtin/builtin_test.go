package builtin

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/go-openapi/loads"
	"github.com/go-openapi/spec"

	"github.com/kraken-hpc/imageapi/internal/container"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/restapi"
)

// Kinds that are part of the interface and have no driver. They are answered 501.
var without = map[driver.Class][]string{
	driver.Attach: {"nvme"},
	driver.Mount:  {"uri", "rbd"}, // a mount of kind rbd comes as one of kind attach, translated
}

// Definitions with only what is required. What one gives as {"id": 1} is not looked at.
var least = map[string]string{
	"attach_iscsi":    `{"kind":"iscsi","iscsi":{"initiator":"iqn.a","target":"iqn.b","host":"h"}}`,
	"attach_http":     `{"kind":"http","http":{"urls":["http://h/a"]}}`,
	"attach_oci":      `{"kind":"oci","oci":{"image":"h/a:1"}}`,
	"attach_verity":   `{"kind":"local","local":{"path":"/a"},"verity":{"root_hash":"` + strings.Repeat("0", 64) + `","hash_device":{"id":1}}}`,
	"attach_loopback": `{"kind":"loopback","loopback":{"path":"/a","base":"root"}}`,
	"mount_attach":    `{"kind":"attach","attach":{"fs_type":"ext4","attach":{"id":1}}}`,
	"mount_nfs":       `{"kind":"nfs","nfs":{"host":"h","path":"/"}}`,
	"mount_bind":      `{"kind":"bind","bind":{"path":"/a","base":"root"}}`,
	"container":       `{"command":"/sbin/init","mount":{"id":1}}`,
	"container_bind":  `{"command":"/sbin/init","mount":{"id":1},"binds":[{"source":"/a","target":"/b"}]}`,
}

func drivers(t *testing.T) driver.Set {
	t.Helper()
	return Drivers(Env{RunDir: t.TempDir(), Mounts: new(mountdir.Dir), Containers: new(container.Driver)})
}

func definitions(t *testing.T) spec.Definitions {
	t.Helper()
	doc, err := loads.Embedded(restapi.SwaggerJSON, restapi.FlatSwaggerJSON)
	if err != nil {
		t.Fatal(err)
	}
	return doc.Spec().Definitions
}

// Every default in swagger.yaml is the one that is applied.
func TestDefaults(t *testing.T) {
	t.Parallel()
	set := drivers(t)
	tested := 0
	for name, definition := range definitions(t) {
		for field, property := range definition.Properties {
			if property.Default == nil {
				continue
			}
			if class, kind, _ := strings.Cut(name, "_"); slices.Contains(without[driver.Class(class)], kind) {
				continue
			}
			def, ok := least[name]
			if !ok {
				t.Errorf("%s.%s has a default that nobody tests", name, field)
				continue
			}
			tested++
			if got, want := shown(t, set, name, def)[field], property.Default; !same(got, want) {
				t.Errorf("%s.%s is %v by default; the specification says %v", name, field, got, want)
			}
		}
	}
	if tested < 6 {
		t.Errorf("only %d defaults were found", tested)
	}
}

// same compares a field of an answer, nil if it is left out, with a default.
func same(got, want any) bool {
	if got == nil {
		return want == false || want == float64(0) || want == ""
	}
	return fmt.Sprint(got) == fmt.Sprint(want)
}

// shown returns the sub-object of a definition as it would be answered.
func shown(t *testing.T, set driver.Set, name, def string) map[string]any {
	t.Helper()
	class, kind, _ := strings.Cut(name, "_")
	if name == "container_bind" {
		binds := shown(t, set, class, def)["binds"].([]any)
		return binds[0].(map[string]any)
	}
	part := kind
	if name == "attach_verity" {
		kind = models.AttachKindLocal
	}
	d, ok := set.Find(driver.Class(class), kind)
	if !ok {
		t.Fatalf("no driver for %s", name)
	}
	unit, needs := drivertest.Plan(t, d, def)
	out := map[driver.Class]driver.Object{
		driver.Attach:    {Attach: new(models.Attach)},
		driver.Mount:     {Mount: new(models.Mount)},
		driver.Container: {Container: new(models.Container)},
	}[driver.Class(class)]
	var below []driver.Object
	for _, need := range needs {
		below = append(below, need.Def)
	}
	unit.Show(out, driver.Status{}, below)
	data, err := json.Marshal([]any{out.Attach, out.Mount, out.Container})
	if err != nil {
		t.Fatal(err)
	}
	var objects []map[string]any
	if err := json.Unmarshal(data, &objects); err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if sub, ok := o[part].(map[string]any); ok {
			return sub
		}
		if o != nil && kind == "" {
			return o
		}
	}
	t.Fatalf("%s shows nothing: %s", name, data)
	return nil
}

// The kinds of the specification are those of the drivers and those that are known to be missing.
func TestKinds(t *testing.T) {
	t.Parallel()
	set, all := drivers(t), definitions(t)
	for _, class := range []driver.Class{driver.Attach, driver.Mount} {
		var specified, ours []string
		for _, kind := range all[string(class)].Properties["kind"].Enum {
			specified = append(specified, fmt.Sprint(kind))
		}
		for _, d := range set {
			if d.Class() == class {
				ours = append(ours, d.Kind())
			}
		}
		ours = append(ours, without[class]...)
		slices.Sort(specified)
		slices.Sort(ours)
		if !slices.Equal(specified, ours) {
			t.Errorf("%s: the specification has the kinds %q; there are %q", class, specified, ours)
		}
	}
}

func TestMissingKindsAreUnsupported(t *testing.T) {
	t.Parallel()
	set := drivers(t)
	for class, kinds := range maps.All(without) {
		for _, kind := range kinds {
			def := driver.Object{Attach: &models.Attach{Kind: kind}}
			if class == driver.Mount {
				def = driver.Object{Mount: &models.Mount{Kind: kind}}
			}
			_, err := set.Plan(def)
			if !errs.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), kind) {
				t.Errorf("%s of kind %s: %v", class, kind, err)
			}
		}
	}
}
