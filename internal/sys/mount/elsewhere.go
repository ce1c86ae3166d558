package mount

import (
	"context"

	"github.com/kraken-hpc/imageapi/internal/sys/holders"
)

// heldElsewhere returns who uses the mount at path in another mount namespace. A namespace that just has a copy, as every
// one made meanwhile does, holds nothing: its copy goes when the mountpoint is removed (rmdir(2) detaches what is
// mounted on a directory in other namespaces, Linux 3.18).
func heldElsewhere(_ context.Context, path string, whole bool) []holders.Holder {
	return holders.Elsewhere(path, whole)
}
