package builtin

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/models"
)

// What an earlier version has written to the journal is read by this one, to the same effect: testdata/units.json has a
// definition of each kind and what it was journalled as. A change of what is written adds an entry here, with the definition
// left out, and never changes one.
func TestJournalOfEarlierVersions(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/units.json")
	if err != nil {
		t.Fatal(err)
	}
	var known []struct {
		Class      driver.Class
		Kind       string
		Definition json.RawMessage // what is written now as Unit
		Unit       json.RawMessage
		Shows      json.RawMessage // if there is no definition
	}
	if err := json.Unmarshal(data, &known); err != nil {
		t.Fatal(err)
	}
	set := drivers(t)
	tested := map[driver.Driver]bool{}
	for _, k := range known {
		d, ok := set.Find(k.Class, k.Kind)
		if !ok {
			t.Errorf("no driver for %s %s", k.Class, k.Kind)
			continue
		}
		restored, err := d.Restore(k.Unit)
		if err != nil {
			t.Errorf("%s %s: %v", k.Class, k.Kind, err)
			continue
		}
		want := canonical(t, k.Shows)
		var needs []driver.Need
		if k.Definition != nil {
			tested[d] = true
			var unit driver.Unit
			unit, needs = drivertest.Plan(t, d, string(k.Definition))
			written, err := json.Marshal(unit)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(unmarked(t, k.Unit), unmarked(t, written)); diff != "" {
				t.Errorf("%s %s is written in another form: keep the old one here, and read both (-old +now):\n%s\n%s", k.Class, k.Kind, diff, written)
			}
			want = canonical(t, face(t, unit, k.Class, needs))
		}
		if diff := cmp.Diff(want, canonical(t, face(t, restored, k.Class, needs))); diff != "" {
			t.Errorf("%s %s is restored as something else (-want +got):\n%s", k.Class, k.Kind, diff)
		}
	}
	for _, d := range set {
		if !tested[d] {
			t.Errorf("testdata/units.json has no %s of kind %q", d.Class(), d.Kind())
		}
	}
}

// unmarked leaves out what differs from plan to plan.
func unmarked(t *testing.T, unit json.RawMessage) any {
	value := canonical(t, unit).(map[string]any)
	delete(value, "mark")
	if under, ok := value["under"].(map[string]any); ok {
		delete(under, "mark")
	}
	return value
}

// face is what a unit shows.
func face(t *testing.T, unit driver.Unit, class driver.Class, needs []driver.Need) []byte {
	t.Helper()
	out := driver.Object{}
	switch class {
	case driver.Attach:
		out.Attach = new(models.Attach)
	case driver.Mount:
		out.Mount = new(models.Mount)
	default:
		out.Container = new(models.Container)
	}
	var below []driver.Object
	for _, need := range needs {
		below = append(below, need.Def)
	}
	unit.Show(out, driver.Status{}, below)
	data, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func canonical(t *testing.T, data json.RawMessage) (value any) {
	t.Helper()
	if data == nil {
		return nil
	}
	if err := json.Unmarshal(data, &value); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	return value
}
