package verity_test

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/verity"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

// able is a unit with every ability.
type able struct{ drivertest.Nothing }

var underStatus = driver.Status{Device: &driver.Device{Path: "/dev/under"}}

func (able) Changes(s driver.Status) string                       { return "changes of " + s.Device.Path }
func (able) Space(driver.Status) (limit, used *int64)             { return nil, nil }
func (able) Revive(context.Context, driver.Status) error          { return nil }
func (able) Interrupt(driver.Status) error                        { return nil }
func (able) Fatal(driver.Status) bool                             { return true }
func (able) Verified(bool) bool                                   { return true }
func (able) Covered(s driver.Status) (driver.Unit, driver.Status) { return able{}, s }
func (able) ForceDown(context.Context, driver.Placement, driver.Status) (string, error) {
	return "", nil
}

type ableDriver struct{ drivertest.NothingDriver }

func (ableDriver) Class() driver.Class { return driver.Attach }
func (ableDriver) Kind() string        { return "able" }

func (ableDriver) ReadOnly(def models.Attach, _ *errs.Faults) models.Attach { return def }

func (ableDriver) Plan(driver.Object, *errs.Faults) (driver.Unit, []driver.Need) { return able{}, nil }

// has reports whether a unit has an ability, and of which status.
func has[T driver.Unit](u driver.Unit, s driver.Status) (driver.Status, bool) {
	_, of, ok := driver.As[T](u, s)
	return of, ok
}

var abilities = map[string]func(driver.Unit, driver.Status) (driver.Status, bool){
	"Changing":         has[driver.Changing],
	"Spacious":         has[driver.Spacious],
	"Forcer":           has[driver.Forcer],
	"Reviver":          has[driver.Reviver],
	"FatallyCorrupted": has[driver.FatallyCorrupted],
	"Verified":         has[driver.Verified],
	"Covering":         has[driver.Covering],
	"Interruptible":    has[driver.Interruptible],
}

// TestCoveredUnitKeepsAbilities: a unit with verity has each ability of the unit below it, of its own or of that unit and then with the
// status of that.
func TestCoveredUnitKeepsAbilities(t *testing.T) {
	t.Parallel()
	if got, want := declared(t), keys(abilities); !slices.Equal(got, want) {
		t.Fatalf("package driver declares the abilities %q, and this test knows %q", got, want)
	}
	def := &models.Attach{Kind: "able", Verity: &models.AttachVerity{RootHash: new(strings.Repeat("0", 64)), HashOffset: 4096}}
	var faults errs.Faults
	covered, _ := verity.Over(ableDriver{}, verity.Options{}).Plan(driver.Object{Attach: def}, &faults)
	if covered == nil {
		t.Fatal(faults.Err())
	}
	status := driver.Status{Device: &driver.Device{Path: "/dev/top"}, Notes: []byte(`{"name":"a","under":{"device":{"path":"/dev/under"}}}`)}
	for name, has := range abilities {
		of, ok := has(covered, status)
		if !ok {
			t.Errorf("%s is lost", name)
			continue
		}
		if own := implements(covered, name); own == reflect.DeepEqual(of.Device, underStatus.Device) {
			t.Errorf("%s, of its own %v, gets the status of %s", name, own, of.Device.Path)
		}
	}
	changing, of, _ := driver.As[driver.Changing](covered, status)
	if got := changing.Changes(of); got != "sound changes of /dev/under" {
		t.Errorf("it changes as %q", got)
	}
}

// implements reports whether a unit has an ability of its own, by the names of methods.
func implements(u driver.Unit, name string) bool {
	method := map[string]string{"Changing": "Changes", "Spacious": "Space", "Forcer": "ForceDown", "Reviver": "Revive", "FatallyCorrupted": "Fatal", "Verified": "Verified", "Covering": "Covered", "Interruptible": "Interrupt"}[name]
	_, ok := reflect.TypeOf(u).MethodByName(method)
	return ok
}

func keys[V any](m map[string]V) (all []string) {
	for key := range m {
		all = append(all, key)
	}
	slices.Sort(all)
	return all
}

// declared returns the interfaces of package driver that embed Unit and are optional.
func declared(t *testing.T) (names []string) {
	t.Helper()
	paths, err := filepath.Glob("../../*.go")
	if err != nil || len(paths) == 0 {
		t.Fatal("no source", err)
	}
	for _, path := range paths {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok && embedsUnit(spec) && spec.Name.Name != "ContainerUnit" {
				names = append(names, spec.Name.Name)
			}
			return true
		})
	}
	slices.Sort(names)
	return names
}

func embedsUnit(spec *ast.TypeSpec) bool {
	i, ok := spec.Type.(*ast.InterfaceType)
	return ok && slices.ContainsFunc(i.Methods.List, func(m *ast.Field) bool {
		name, ok := m.Type.(*ast.Ident)
		return ok && len(m.Names) == 0 && name.Name == "Unit"
	})
}
