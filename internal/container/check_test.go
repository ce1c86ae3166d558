package container

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/models"
)

// What the node sees of a root tells of the command only where the container would see the same.
func TestCheckCommand(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, dir := range []string{"bin", "opt", "proc", "run"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, script := range map[string]string{"bin/sh": "#!/bin/sh\n", "bin/lost": "#!/opt/nowhere\n", "bin/run": "#!/run/nowhere\n", "bin/empty": ""} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"usr": "/bin", "bin/away": "/opt/away", "bin/proc": "/proc/self/exe", "bin/same": "sh"} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	const found, missing, unsure = "found", "missing", "unsure"
	plain, systemd := &unit{Def: models.Container{Systemd: new(false)}}, &unit{Def: models.Container{Systemd: new(true)}}
	bound := &unit{Def: models.Container{Systemd: new(false), Binds: []*models.ContainerBind{{Source: new("/"), Target: new("/opt/")}}}}
	for name, c := range map[string]struct {
		unit    *unit
		command string
		want    string
	}{
		"there":                       {plain, "/bin/sh", found},
		"by a link":                   {plain, "/bin/same", found},
		"by PATH":                     {plain, "sh", found},
		"nowhere":                     {plain, "/bin/nowhere", missing},
		"not in PATH":                 {plain, "nowhere", missing},
		"below a file":                {plain, "/bin/sh/x", missing},
		"a directory":                 {plain, "/bin", missing},
		"of another sort":             {plain, "/bin/empty", unsure},
		"without its interpreter":     {plain, "/bin/lost", missing},
		"a link to nowhere":           {plain, "/bin/away", unsure},
		"below a link":                {plain, "/usr/nowhere", unsure},
		"in proc":                     {plain, "/proc/self/exe", unsure},
		"a link to proc":              {plain, "/bin/proc", unsure},
		"by the working directory":    {plain, "bin/sh", unsure},
		"covered by a bind":           {bound, "/opt/x", unsure},
		"its interpreter is covered":  {bound, "/bin/lost", unsure},
		"systemd, /run":               {systemd, "/run/init", unsure},
		"systemd, interpreter in run": {systemd, "/bin/run", unsure},
		"/run without systemd":        {plain, "/bin/run", missing},
	} {
		t.Run(name, func(t *testing.T) {
			config := wire.Config{Args: []string{c.command}, Env: []string{"PATH=/nowhere:/bin"}}
			looked, err := c.unit.checkCommand(&driver.Tree{Path: root}, config)
			got := found
			switch {
			case !looked:
				got = unsure
			case err != nil:
				got = missing
			}
			if got != c.want || got == unsure && err != nil {
				t.Errorf("%s, %v; want %s", got, err, c.want)
			}
		})
	}
	for name, tree := range map[string]*driver.Tree{"to be made": {}, "on a server": {Path: root, Remote: true}, "gone": {Path: root + "/gone"}} {
		if looked, err := plain.checkCommand(tree, wire.Config{Args: []string{"/bin/nowhere"}}); looked || err != nil {
			t.Errorf("a root %s: looked %v, %v", name, looked, err)
		}
	}
}
