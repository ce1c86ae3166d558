package spawn_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
)

// A program can't be changed, by whatever way it is opened, not even while nobody executes it, when the kernel would let it be written to.
func TestSealed(t *testing.T) {
	t.Parallel()
	sealed, err := spawn.Seal("test", []byte("#!/bin/true\n"))
	if err != nil {
		t.Fatal(err)
	}
	defer sealed.Close()
	again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", sealed.Fd()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	_, mapping := unix.Mmap(int(again.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	_, written := again.WriteAt([]byte("x"), 0)
	_, unsealed := unix.FcntlInt(again.Fd(), unix.F_ADD_SEALS, 0)
	for what, err := range map[string]error{
		"written": written, "cut": again.Truncate(1), "extended": again.Truncate(4096), "mapped": mapping, "sealed otherwise": unsealed,
	} {
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
