package driver_test

import (
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

// stack is a driver of overlays that does nothing but plan: each lower is a need, and a list of none is a fault.
type stack struct{ drivertest.NothingDriver }

func (stack) Class() driver.Class { return driver.Mount }
func (stack) Kind() string        { return "overlay" }

func (stack) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	if def.Mount.Overlay == nil {
		faults.Add("overlay", "is required")
		return nil, nil
	}
	var needs []driver.Need
	for i, lower := range def.Mount.Overlay.Lower {
		needs = append(needs, driver.Need{Path: "overlay.lower[" + string(rune('0'+i)) + "]", Def: driver.Object{Mount: lower}})
	}
	return drivertest.Nothing{}, needs
}

func mount(kind string, lowers ...*models.Mount) *models.Mount {
	m := &models.Mount{Kind: kind}
	if kind == "overlay" && len(lowers) > 0 {
		m.Overlay = &models.MountOverlay{Lower: lowers}
	}
	return m
}

func TestPlanNamesAllFaultsAtOnce(t *testing.T) {
	t.Parallel()
	_, err := driver.Set{stack{}}.Plan(driver.Object{Mount: mount("overlay", mount("overlay"), mount(""), mount("overlay", mount("overlay")))})
	if !errs.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
	for _, want := range []string{
		"mount.overlay.lower[0].overlay: is required",
		"mount.overlay.lower[1].kind: is required",
		"mount.overlay.lower[2].overlay.lower[0].overlay: is required",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
}

func TestPlanOfAKindWithoutDriver(t *testing.T) {
	t.Parallel()
	_, err := driver.Set{stack{}}.Plan(driver.Object{Mount: mount("overlay", mount("uri"))})
	if !errs.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), `mount.overlay.lower[0]: this version has no mount driver of kind "uri"; use one of overlay`) {
		t.Error(err)
	}
}

func TestPlanTakesAnIDForWhatIsThere(t *testing.T) {
	t.Parallel()
	given := mount("nonsense")
	given.ID = 7
	plan, err := driver.Set{stack{}}.Plan(driver.Object{Mount: mount("overlay", given, mount("overlay", given))})
	if err != nil {
		t.Fatal(err)
	}
	if ref := plan.Needs[0]; ref.ID != 7 || ref.Plan != nil || ref.Class != driver.Mount || ref.Path != "mount.overlay.lower[0]" {
		t.Errorf("the first need is %+v", ref)
	}
	if ref := plan.Needs[1]; ref.ID != 0 || ref.Plan == nil || ref.Plan.Needs[0].ID != 7 {
		t.Errorf("the second need is %+v", ref)
	}
}

func TestPlanHasALimitOfDepth(t *testing.T) {
	t.Parallel()
	bottom := mount("")
	bottom.ID = 1
	for depth, ok := range map[int]bool{driver.MaxDepth: true, driver.MaxDepth + 1: false} {
		def := bottom
		for range depth {
			def = mount("overlay", def)
		}
		if _, err := (driver.Set{stack{}}).Plan(driver.Object{Mount: def}); (err == nil) != ok {
			t.Errorf("%d levels: %v", depth, err)
		}
	}
}
