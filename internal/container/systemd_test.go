package container

import (
	"regexp"
	"slices"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

func TestSystemdEnv(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		own  []string
		want string
	}{
		"default":     {nil, "TERM=dumb"},
		"asked for":   {[]string{"TERM=linux"}, "TERM=linux"},
		"another one": {[]string{"TERM=vt220"}, "TERM=vt220"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := &unit{driver: &Driver{opt: Options{RunDir: "/run/a"}}}
			u.Def.Env, u.Def.Systemd = c.own, new(true)
			var config wire.Config
			u.runEnv(&config)
			if err := u.addSystemdEnv(&config, 7); err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{c.want, "container=imageapi", "NOTIFY_SOCKET=/run/host/notify"} {
				if !slices.Contains(config.Env, want) {
					t.Errorf("the environment lacks %s: %q", want, config.Env)
				}
			}
		})
	}
}

// TestMachineID: the same each time, and another one for another container and another server.
func TestMachineID(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, dir := range []string{"/run/a", "/run/b"} {
		d := &Driver{opt: Options{RunDir: dir}}
		for id := range int64(3) {
			got, err := d.machineID(id)
			again, _ := d.machineID(id)
			if err != nil || got != again || seen[got] {
				t.Errorf("%s, container %d: %s, then %s (%v)", dir, id, got, again, err)
			}
			if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(got) {
				t.Errorf("%s is no UUID of version 8", got)
			}
			seen[got] = true
		}
	}
}
