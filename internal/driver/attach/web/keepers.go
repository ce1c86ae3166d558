package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver/attach/web/keeperbin"
	"github.com/kraken-hpc/imageapi/internal/proc/keeper"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/nbd"
	"github.com/kraken-hpc/imageapi/internal/web/keep"
)

// Launcher starts programs in a mount namespace without the node's mounts, and has a cgroup for them.
type Launcher interface {
	Launch(path string, argv []string, attr *os.ProcAttr) (*os.Process, error)
	KeepersGroup() (*os.File, error) // nil: the daemon's own
}

// keepers starts and finds the keepers of a node.
type keepers struct {
	registry keeper.Registry
	binary   func() (*os.File, error)

	mu      sync.Mutex // protects what follows
	program *os.File   // sealed when the first keeper is started
}

func newKeepers(o Options) *keepers {
	k := &keepers{binary: o.Program}
	if k.binary == nil {
		k.binary = keeperbin.Program
	}
	k.registry = keeper.Registry{Role: role, Dir: o.KeepersDir, Failpoint: o.Failpoint}
	if o.Launcher != nil {
		k.registry.Launch, k.registry.Cgroup = o.Launcher.Launch, o.Launcher.KeepersGroup
	}
	return k
}

// role is the word for keepers in messages and failpoints.
const role = "keeper"

// serve starts a keeper that serves a device.
func (k *keepers) serve(name, config string) (*keeper.Keeper, error) {
	code, err := k.code()
	if err != nil {
		return nil, err
	}
	around, err := surroundings()
	if err != nil {
		return nil, err
	}
	defer around.Close()
	return k.start(k.registry, keeper.Spec{
		Name: name, Program: code, Args: []string{name}, Flags: syscall.CLONE_NEWNS, Files: []*os.File{around}, Run: []string{config},
		Env: []string{"GODEBUG=disablethp=1", "GOGC=50"}, // where every program gets huge pages, the heap would take them
	})
}

// merge starts a process that merges layers into a pipe. It is in the daemon's cgroup, for it ends with the daemon.
func (k *keepers) merge(name, config string, to *os.File, layers []*os.File) (*keeper.Keeper, error) {
	code, err := k.binary()
	if err != nil {
		return nil, err
	}
	defer code.Close()
	r := k.registry
	r.Cgroup = nil
	return k.start(r, keeper.Spec{
		Name: name, Program: code, Args: []string{keep.Merger, name}, Files: append([]*os.File{to}, layers...), Run: []string{config},
		Flags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
	})
}

// start starts the program.
func (k *keepers) start(r keeper.Registry, spec keeper.Spec) (*keeper.Keeper, error) {
	err := r.Failpoint.Do("keepers make", func() error { return os.Mkdir(r.Dir, 0o700) })
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return r.Start(spec)
}

func (k *keepers) code() (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.program != nil {
		return k.program, nil
	}
	var err error
	k.program, err = k.binary()
	return k.program, err
}

// surroundings returns the files of the node that a keeper needs.
func surroundings() (*os.File, error) {
	read := func(paths ...string) []byte {
		for _, path := range paths {
			if data, err := os.ReadFile(path); err == nil {
				return data
			}
		}
		return nil // the node has none
	}
	data, err := json.Marshal(keep.Surroundings{
		Hosts: read("/etc/hosts"), Resolver: read("/etc/resolv.conf"),
		Roots: read("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
			"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem"),
	})
	if err != nil {
		return nil, err
	}
	return spawn.Seal("surroundings", data)
}

// keeperName is the name of an attachment's keeper: its device has the same mark.
func (u *unit) keeperName(id int64) string { return strconv.FormatInt(id, 10) + "." + u.Mark }

// KeepersDir returns the directory of the keepers' sockets, ID.MARK.sock, in a run directory.
func KeepersDir(runDir string) string { return filepath.Join(runDir, "keepers") }

// CleanStray ends the device and the keeper to which a file in KeepersDir belongs, and removes the file.
func CleanStray(ctx context.Context, g failpoint.Hook, path string) error {
	name, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(path), ".sock"), ".exit")
	tag := "imageapi-" + strings.Replace(name, ".", "-", 1)
	k := nbd.Kernel{Failpoint: g}
	index, found, err := nbd.Find(tag)
	if err == nil && found {
		if err = k.Disconnect(index); err == nil {
			err = nbd.WaitFree(ctx, index, tag)
		}
	}
	if err != nil {
		return err
	}
	return endKeeper(ctx, &keeper.Registry{Role: role, Dir: filepath.Dir(path), Failpoint: g}, name)
}

// endKeeper ends a keeper, if there is one, and removes its files.
func endKeeper(ctx context.Context, r *keeper.Registry, name string) error {
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	switch k, err := r.Find(ctx, name); {
	case err == nil:
		defer k.Close()
		if err := k.Kill(ctx); err != nil {
			return err
		}
	case !errors.Is(err, keeper.ErrNone):
		return fmt.Errorf("end keeper %s: %w", name, err)
	}
	if err := r.Forget(name); err != nil {
		return err
	}
	if _, err := os.Lstat(r.Dir); err != nil {
		return nil
	}
	err := r.Failpoint.Do("keepers remove", func() error { return os.Remove(r.Dir) })
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return err
}
