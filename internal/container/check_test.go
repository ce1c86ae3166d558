package container

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
	"github.com/kraken-hpc/imageapi/internal/driver"
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
	bound := &unit{options: options{Binds: []bind{{Source: "/", Target: "/opt/"}}}}
	for name, c := range map[string]struct {
		unit    *unit
		command string
		want    string
	}{
		"there":                       {new(unit), "/bin/sh", found},
		"by a link":                   {new(unit), "/bin/same", found},
		"by PATH":                     {new(unit), "sh", found},
		"nowhere":                     {new(unit), "/bin/nowhere", missing},
		"not in PATH":                 {new(unit), "nowhere", missing},
		"below a file":                {new(unit), "/bin/sh/x", missing},
		"a directory":                 {new(unit), "/bin", missing},
		"of another sort":             {new(unit), "/bin/empty", unsure},
		"without its interpreter":     {new(unit), "/bin/lost", missing},
		"a link to nowhere":           {new(unit), "/bin/away", unsure},
		"below a link":                {new(unit), "/usr/nowhere", unsure},
		"in proc":                     {new(unit), "/proc/self/exe", unsure},
		"a link to proc":              {new(unit), "/bin/proc", unsure},
		"by the working directory":    {new(unit), "bin/sh", unsure},
		"covered by a bind":           {bound, "/opt/x", unsure},
		"its interpreter is covered":  {bound, "/bin/lost", unsure},
		"systemd, /run":               {&unit{Systemd: true}, "/run/init", unsure},
		"systemd, interpreter in run": {&unit{Systemd: true}, "/bin/run", unsure},
		"/run without systemd":        {new(unit), "/bin/run", missing},
	} {
		t.Run(name, func(t *testing.T) {
			config := proto.Config{Args: []string{c.command}, Env: []string{"PATH=/nowhere:/bin"}}
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
		if looked, err := new(unit).checkCommand(tree, proto.Config{Args: []string{"/bin/nowhere"}}); looked || err != nil {
			t.Errorf("a root %s: looked %v, %v", name, looked, err)
		}
	}
}
