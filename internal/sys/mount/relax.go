package mount

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// Relax clears attributes of a detached tree, of all mounts in it, and cuts it off from the propagation of mounts and
// unmounts in both directions.
func Relax(g failpoint.Hook, tree *os.File, clear Attr) error {
	err := g.Do("mount attributes", func() error {
		return unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_clr: uint64(clear), Propagation: unix.MS_PRIVATE})
	})
	if err != nil {
		return Refused(&Error{Op: "clear mount attributes of", Source: tree.Name(), Flags: clear, Err: err})
	}
	return nil
}
