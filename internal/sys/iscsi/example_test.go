package iscsi_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/kraken-hpc/imageapi/internal/sys/iscsi"
)

// inProcess is the shortest iscsi.Helper: its calls hang as long as a target does not respond.
type inProcess struct{}

func (inProcess) WriteFile(_ context.Context, path string, data []byte) error {
	return os.WriteFile(path, data, 0)
}

func (inProcess) Open(_ context.Context, root, path string, flags int) (*os.File, error) {
	return os.OpenFile(filepath.Join(root, path), flags, 0)
}

// Ask would send SCSI commands with SG_IO. Without it, units are known by what the kernel has read when it found them.
func (inProcess) Ask(context.Context, string, [][]byte, []int) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// modprobe is an iscsi.Modules.
type modprobe struct{}

func (modprobe) Load(ctx context.Context, name string) error {
	return exec.CommandContext(ctx, "modprobe", name).Run()
}

func (modprobe) Find(ctx context.Context, name string) error {
	return exec.CommandContext(ctx, "modprobe", "-n", name).Run()
}

// A program that attaches LUN 1 of a target, and detaches it again.
func Example() {
	if len(os.Args) < 2 || os.Args[1] != "run" { // it needs root and a target
		return
	}
	env := iscsi.Env{
		Dir: "/run", Program: "example", Log: slog.Default(), Helper: inProcess{}, Modules: modprobe{},
		Users: func(uint64) string { return "" },
	}
	env.Backoff.Min, env.Backoff.Max = time.Second, 15*time.Second
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	session, err := iscsi.Open(ctx, env, iscsi.Config{
		Initiator: "iqn.2026-05.org.example:node1", Target: "iqn.2026-05.org.example:images",
		Portals:     []iscsi.Portal{{Host: "192.0.2.7", Port: iscsi.DefaultPort}},
		Auth:        iscsi.Auth{Name: "node1", Secret: os.Getenv("SECRET")},
		MaxCommands: 128, Replacement: 2 * time.Minute,
	})
	if err != nil {
		log.Fatalf("class %q: %v", iscsi.ClassOf(err), err)
	}
	unit := session.Unit(1)
	disk, err := unit.Add(ctx)
	if err != nil {
		log.Print(err)
	}
	fmt.Println(disk)
	if err := errors.Join(unit.Detach(ctx, false), session.Close(ctx)); err != nil {
		log.Print(err)
	}
	// Output:
}

// Errors have a class, and secrets are never printed.
func ExampleClassOf() {
	env := iscsi.Env{Modules: modprobe{}}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := iscsi.Open(ctx, env, iscsi.Config{Auth: iscsi.Auth{Name: "node1", Secret: "swordfish"}})
	fmt.Println(err != nil, iscsi.Auth{Name: "node1", Secret: "swordfish"})
	// Output: true CHAP as "node1" with ""
}
