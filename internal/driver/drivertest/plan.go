package drivertest

import (
	"encoding/json"
	"reflect"
	"slices"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

func planOfNothing(t *testing.T, c Case) {
	d := c.New(nil)
	def, err := json.Marshal(map[string]string{"kind": d.Kind()})
	if err != nil {
		t.Fatal(err)
	}
	for _, def := range []string{string(def), "{}"} {
		refused(t, d, def, nil)
	}
}

func planOfWrong(t *testing.T, c Case) {
	for _, w := range c.Wrong {
		t.Run(w.Name, func(t *testing.T) { refused(t, c.New(nil), w.Def, w.Paths) })
	}
}

// refused proves that a definition has faults, at the given paths if any are given.
func refused(t *testing.T, d driver.Driver, def string, paths []string) {
	t.Helper()
	var faults errs.Faults
	d.Plan(Object(t, d.Class(), def), &faults)
	if len(faults) == 0 {
		t.Fatalf("plan %s: no faults", def)
	}
	var got []string
	for _, f := range faults {
		if f.Path == "" || f.Text == "" {
			t.Errorf("plan %s: fault %+v lacks its path or text", def, f)
		}
		got = append(got, f.Path)
	}
	slices.Sort(got)
	if want := slices.Sorted(slices.Values(paths)); paths != nil && !slices.Equal(got, want) {
		t.Errorf("plan %s: faults at %q, want %q (%v)", def, got, want, faults.Err())
	}
}

// planIsPure proves that Plan does not touch the kernel, change its argument, or keep it.
func planIsPure(t *testing.T, c Case) {
	planning := false // New may act
	d := c.New(failpoint.Ask(func(act string) error {
		if planning {
			t.Errorf("Plan performs %q", act)
		}
		return nil
	}))
	before := testkit.Snapshot(t, c.Scope)
	planning = true
	def := Object(t, d.Class(), c.Good)
	var faults errs.Faults
	unit, needs := d.Plan(def, &faults)
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	before.Same(t)
	if len(needs) != len(c.Needs) {
		t.Fatalf("Plan names %d needs, the case has %d", len(needs), len(c.Needs))
	}
	if fresh := Object(t, d.Class(), c.Good); !reflect.DeepEqual(def, fresh) {
		t.Errorf("Plan changed the definition to %s, want %s", encoded(t, def), encoded(t, fresh))
	}
	first := shown(t, d, unit, driver.Status{}, needs)
	scramble(reflect.ValueOf(def))
	if second := shown(t, d, unit, driver.Status{}, needsOf(t, d, c.Good)); second != first {
		t.Errorf("Plan kept a part of the definition: Show gave %s, then %s", first, second)
	}
}

func needsOf(t *testing.T, d driver.Driver, def string) []driver.Need {
	t.Helper()
	_, needs := Plan(t, d, def)
	return needs
}

// shown returns what Show writes, as JSON.
func shown(t *testing.T, d driver.Driver, u driver.Unit, status driver.Status, needs []driver.Need) string {
	t.Helper()
	var whole []driver.Object
	for _, n := range needs {
		whole = append(whole, n.Def)
	}
	out := Object(t, d.Class(), "{}")
	u.Show(out, status, whole)
	return encoded(t, out)
}

func encoded(t *testing.T, o driver.Object) string {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// scramble overwrites every string, number and boolean that can be reached from v.
func scramble(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			scramble(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				scramble(v.Field(i))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			scramble(v.Index(i))
		}
	case reflect.String:
		v.SetString("scrambled")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int64, reflect.Int:
		v.SetInt(v.Int() + 4711)
	}
}
