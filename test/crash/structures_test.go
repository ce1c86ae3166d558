package crash

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/define"
)

// def is a definition, as a client sends it.
type def map[string]any

// structure is what a client makes with one request.
type structure struct {
	name   string
	path   string                       // of the API
	levels int                          // how many objects come about
	define func(l *lab) any             // creates its dependencies
	works  func(l *lab, o object) error // looks at it from the node
	uses   []operation                  // besides create and delete
	guest  bool                         // it needs a server of the guest of test/vm
}

// running is a container, with more fields.
func running(mount *models.Mount, change ...func(*models.Container)) *models.Container {
	c := &models.Container{Name: "subject", State: models.ContainerStateRunning, Command: new("/bin/tail -f /dev/null"), Mount: mount}
	for _, f := range change {
		f(c)
	}
	return c
}

// ext4 makes an image with a file system.
func (l *lab) ext4(name string) string {
	path := filepath.Join(l.images, name)
	if _, err := os.Stat(path); err != nil {
		testkit.Run(l, "cp", "--sparse=always", testkit.Ext4(l, l.TempDir()), path)
	}
	return path
}

// tree makes a directory of files.
func (l *lab) tree() string {
	dir := filepath.Join(l.images, "tree")
	check(l, os.MkdirAll(filepath.Join(dir, "sub"), 0o755))
	check(l, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644))
	return dir
}

// structures are those that a kernel has alone, and those of the guest.
func structures() []structure { return append(local(), remote()...) }

func local() []structure {
	return []structure{
		{
			name: "bind ro", path: "/mount", levels: 1, works: all(reads("file"), refuses),
			define: func(l *lab) any { return define.Bind(l.tree(), func(b *models.MountBind) { b.Ro = new(true) }) },
		}, {
			name: "bind rw", path: "/mount", levels: 1, works: all(reads("file"), writes),
			define: func(l *lab) any { return define.Bind(l.tree(), func(b *models.MountBind) { b.Recursive = new(true) }) },
		}, {
			name: "bind in bind", path: "/mount", levels: 2, works: writes,
			define: func(l *lab) any { return define.BindIn(define.Bind(l.tree()), "sub") },
		}, {
			name: "loopback", path: "/attach", levels: 1, works: holdsImage,
			define: func(l *lab) any { return define.Loopback(l.image()) },
		}, {
			name: "oci", path: "/attach", levels: 1, works: holdsErofs,
			define: func(l *lab) any {
				registry := testkit.StartRegistry(l, "")
				var layer bytes.Buffer
				w := tar.NewWriter(&layer)
				check(l, w.WriteHeader(&tar.Header{Name: "file", Typeflag: tar.TypeReg, Mode: 0o644}))
				check(l, w.Close())
				image := testkit.NewImage(l, nil, nil, testkit.Blob{MediaType: testkit.MediaLayer, Data: layer.Bytes()})
				return &models.Attach{Kind: models.AttachKindOci, Oci: &models.AttachOci{Image: new(registry.Push(l, "a", "1", image)), PlainHTTP: true}}
			},
		}, {
			name: "partitions", path: "/attach", levels: 1, works: hasPartition,
			define: func(l *lab) any {
				a := define.Loopback(l.disk())
				a.Loopback.ReadPartitions = new(true)
				return a
			},
		}, {
			name: "local", path: "/mount", levels: 2, works: writes,
			define: func(l *lab) any { return define.Device(define.Local(l.blockDevice()), "ext4") },
		}, {
			name: "squashfs", path: "/mount", levels: 2, works: all(reads("bin/busybox"), refuses),
			define: func(l *lab) any { return define.Squash(l.image()) },
		}, {
			name: "ext4", path: "/mount", levels: 2, works: writes,
			define: func(l *lab) any { return define.Device(define.Loopback(l.ext4("disk")), "ext4") },
		}, {
			name: "overlay tmpfs", path: "/mount", levels: 3, works: all(reads("bin/busybox"), writes),
			define: func(l *lab) any { return define.Overlay(define.Squash(l.image())) },
		}, {
			name: "overlay kept", path: "/mount", levels: 5, works: all(reads("bin/busybox"), writes),
			define: func(l *lab) any {
				return define.OverlayOn(l.upper(), define.Squash(l.image()))
			},
		}, {
			name: "overlay none", path: "/mount", levels: 4, works: all(reads("bin/busybox"), reads("file"), refuses),
			define: func(l *lab) any {
				return define.OverlayOn(&models.MountOverlayUpper{None: true}, define.Bind(l.tree()), define.Squash(l.image()))
			},
		}, {
			name: "five levels", path: "/container", levels: 5, works: runs,
			define: func(l *lab) any {
				inner := define.LoopbackIn(define.Bind(l.images), filepath.Base(l.image()))
				return running(define.Overlay(define.Device(inner, "squashfs")))
			},
		}, {
			name: "container", path: "/container", levels: 3, works: runs,
			define: func(l *lab) any {
				return running(define.Squash(l.image()), func(c *models.Container) {
					c.Devices = []string{"/dev/full"}
					c.Binds = []*models.ContainerBind{{Source: new(l.tree()), Target: new("/tmp"), Ro: new(true)}}
				})
			},
		}, {
			name: "restarted", path: "/container", levels: 4, works: runs,
			define: func(l *lab) any {
				return running(define.Overlay(define.Squash(l.image())), func(c *models.Container) { c.Restart = models.ContainerRestartAlways })
			},
			uses: []operation{stop, startAgain, freeze, thaw, execute},
		},
	}
}

// all has all looks say what they see.
func all(looks ...func(l *lab, o object) error) func(l *lab, o object) error {
	return func(l *lab, o object) error {
		for _, look := range looks {
			if err := look(l, o); err != nil {
				return err
			}
		}
		return nil
	}
}

func reads(name string) func(l *lab, o object) error {
	return func(_ *lab, o object) error {
		_, err := os.ReadFile(filepath.Join(o.Mountpoint, name))
		return err
	}
}

func writes(_ *lab, o object) error {
	path := filepath.Join(o.Mountpoint, "written")
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		return err
	}
	return os.Remove(path)
}

func refuses(l *lab, o object) error {
	if err := writes(l, o); err == nil {
		return fmt.Errorf("%s can be written to", o.Mountpoint)
	}
	return nil
}

func holdsImage(l *lab, o object) error {
	f, err := os.Open(o.DeviceFile)
	if err != nil {
		return err
	}
	defer f.Close()
	want, err := os.ReadFile(l.image())
	if err != nil {
		return err
	}
	have := make([]byte, len(want)/512*512)
	if _, err := io.ReadFull(f, have); err != nil {
		return err
	}
	if !bytes.Equal(have, want[:len(have)]) {
		return fmt.Errorf("%s holds something else", o.DeviceFile)
	}
	return nil
}

func holdsErofs(_ *lab, o object) error {
	f, err := os.Open(o.DeviceFile)
	if err != nil {
		return err
	}
	defer f.Close()
	magic := make([]byte, 4)
	if _, err := f.ReadAt(magic, 1024); err != nil || string(magic) != "\xe2\xe1\xf5\xe0" {
		return fmt.Errorf("%s has no EROFS: %x, %w", o.DeviceFile, magic, err)
	}
	return nil
}

func hasPartition(_ *lab, o object) error {
	f, err := os.Open(o.DeviceFile + "p1")
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.ReadFull(f, make([]byte, 512))
	return err
}

// runs proves that a container is what its state says.
func runs(_ *lab, o object) error {
	if o.State != "running" && o.State != "paused" {
		if o.PID != 0 {
			return fmt.Errorf("the container is %s and has process %d", o.State, o.PID)
		}
		return nil
	}
	line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(o.PID), "cmdline"))
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(line), "/bin/tail") {
		return fmt.Errorf("process %d is %q", o.PID, line)
	}
	return nil
}

// upper is a layer that is kept, in a mount.
func (l *lab) upper() *models.MountOverlayUpper {
	return &models.MountOverlayUpper{Path: "/layer", Mount: define.Device(define.Loopback(l.ext4("upper")), "ext4")}
}

// disk makes an image with a partition table.
func (l *lab) disk() string {
	path := filepath.Join(l.images, "parted")
	if _, err := os.Stat(path); err != nil {
		testkit.Need(l, "sfdisk")
		check(l, os.WriteFile(path, nil, 0o600))
		check(l, os.Truncate(path, 8<<20))
		testkit.Run(l, "sh", "-c", "printf 'label: gpt\nsize=4M\n' | sfdisk --quiet "+path)
	}
	return path
}

// blockDevice makes a block device that the daemon knows nothing of.
func (l *lab) blockDevice() string {
	device := strings.TrimSpace(testkit.Run(l, "losetup", "--find", "--show", testkit.Ext4(l, l.TempDir())))
	l.Cleanup(func() { testkit.Run(l, "losetup", "-d", device) })
	return device
}

// operation is a request about a structure that is there.
type operation struct {
	name    string
	prepare []request
	request request
	states  []string // that a container may be in when it was cut off
	result  string   // and that it must be in when it was answered
}

type request struct {
	method, query string // the query says what follows ?id=N
	path          string // below that of the structure
	body          any
}

func patch(state string) request { return request{method: http.MethodPatch, query: "&state=" + state} }

var (
	stop       = operation{name: "stop", request: patch("exited"), states: []string{"running", "exited"}, result: "exited"}
	startAgain = operation{name: "start", prepare: []request{patch("exited")}, request: patch("running"), states: []string{"exited", "running"}, result: "running"}
	freeze     = operation{name: "freeze", request: patch("paused"), states: []string{"running", "paused"}, result: "paused"}
	thaw       = operation{name: "thaw", prepare: []request{patch("paused")}, request: patch("running"), states: []string{"running", "paused"}, result: "running"}
	execute    = operation{
		name: "exec", request: request{method: http.MethodPost, path: "/exec", body: def{"args": []string{"/bin/echo", "hello"}}},
		states: []string{"running"}, result: "running",
	}
)
