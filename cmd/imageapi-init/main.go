// Imageapi-init is the small program beside and inside a container. The server embeds it and executes it from memory. It is a dispatch of
// its modes: the packages of internal/proc have their bodies.
//
// It imports as little as possible, since each container has one of it.
package main

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/act"
	"github.com/kraken-hpc/imageapi/internal/proc/exec"
	"github.com/kraken-hpc/imageapi/internal/proc/inside"
	"github.com/kraken-hpc/imageapi/internal/proc/supervisor"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

func main() {
	// Namespaces, capabilities, masks and mounts belong to a thread.
	runtime.LockOSThread()
	args := append(os.Args, "", "")
	modes := map[string]func() int{
		wire.ModeSupervisor: func() int { return supervisor.Main(args[2]) },
		wire.ModeInit:       inside.Stage,
		wire.ModeExec:       exec.Main,
		wire.ModeInside:     inside.Beside,
		wire.ModeHelper:     act.Main,
	}
	mode, ok := modes[args[1]]
	if !ok {
		_, _ = os.Stderr.WriteString("imageapi-init: works for imageapi-server, which is the one to start it\n")
		os.Exit(2)
	}
	// The name, which would otherwise be the number of a descriptor. Children inherit no descriptor by accident.
	name := []byte("imageapi-init\x00")
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
	_ = unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) // Linux 5.11
	os.Exit(mode())
}
