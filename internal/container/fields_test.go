package container

import (
	"encoding/json"
	"reflect"
	"slices"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/restapi"
)

// Each property of a container that a client can set has its row. Those without one are of the objects around it, or still to come.
func TestEachPropertyHasARow(t *testing.T) {
	t.Parallel()
	var spec struct {
		Definitions map[string]struct {
			Properties map[string]struct{ ReadOnly bool }
		}
	}
	if err := json.Unmarshal(restapi.FlatSwaggerJSON, &spec); err != nil {
		t.Fatal(err)
	}
	others := []string{"id", "image", "mount", "refs", "replacing", "state", "id_map", "shm_size", "tmpfs"}
	for name, property := range spec.Definitions["container"].Properties {
		row := slices.ContainsFunc(fields, func(f field) bool { return f.name == name })
		if want := !property.ReadOnly && !slices.Contains(others, name); row != want {
			t.Errorf("%s: has a row: %v, want %v", name, row, want)
		}
	}
}

// onlyFirst are the fields of a configuration that concern the first process or the container as a whole. A command shares the
// result (host name, devices, binds), or has its own value.
var onlyFirst = []string{
	"Args", "Hostname", "Systemd", "StopSignal", "StopTimeout", "Devices", "HostDevices", "Binds", "LogName", "LogSize", "ExitName", "Input", "TTY",
}

// A command gets each field that restricts the first process: one that is not passed on fails here unless onlyFirst has it.
func TestCommandsAreRestrictedLikeTheFirstProcess(t *testing.T) {
	t.Parallel()
	var first wire.Config
	fill(t, reflect.ValueOf(&first).Elem())
	got, err := (&process{config: first}).commandConfig(driver.Command{Args: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	a, b := reflect.ValueOf(first), reflect.ValueOf(got)
	for i := range a.NumField() {
		name := a.Type().Field(i).Name
		same := reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface())
		if want := !slices.Contains(onlyFirst, name); same != want {
			t.Errorf("%s: %v for the first process, %v for a command, want the same: %v", name, a.Field(i), b.Field(i), want)
		}
	}
}

// fill sets all of a value to something else than zero.
func fill(t *testing.T, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(t, v.Index(0))
	case reflect.String:
		v.SetString("A=1")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		v.SetUint(7)
	default:
		t.Fatalf("a field of kind %s: say here how to fill it", v.Kind())
	}
}
