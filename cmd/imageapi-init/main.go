// Imageapi-init is the small program beside and inside a container. The server embeds it and executes it from memory;
// it is of no use to anybody else.
//
// As supervisor it starts the container's first process, writes its log, ends it, and knows how it ended. As init
// stage it is that first process until the inside is ready, and then becomes the command. As helper it does one act that
// may hang, such as a mount from a server that does not answer. And it brings further commands into a container.
//
// It imports as little as possible, since each container has one of it.
package main

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
	"github.com/kraken-hpc/imageapi/internal/sys/helper/wire"
)

func main() {
	// Namespaces, capabilities, masks and mounts belong to a thread.
	runtime.LockOSThread()
	mode := ""
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	switch mode {
	case proto.ModeSupervisor:
		prepare()
		os.Exit(supervise())
	case proto.ModeInit:
		prepare()
		os.Exit(stage())
	case proto.ModeExec:
		prepare()
		os.Exit(execute())
	case proto.ModeInside:
		prepare()
		os.Exit(beside())
	case wire.Mode:
		prepare()
		// It may be given a secret.
		if unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) != nil {
			os.Exit(1)
		}
		os.Exit(help())
	default:
		_, _ = os.Stderr.WriteString("imageapi-init: works for imageapi-server, which is the one to start it\n")
		os.Exit(2)
	}
}

// prepare gives the process its name, which would else be the number of a descriptor, and keeps what it holds from its
// children.
func prepare() {
	name := append([]byte("imageapi-init"), 0)
	_ = prctlName(name)
	_ = unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) // Linux 5.11
}
