package nfs

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// common are the host names of nodes that were given none: any number of nodes can have the same.
var common = []string{"", "(none)", "localhost", "localhost.localdomain"}

// identifiers are where the kernel has what a server tells this node by besides its host name.
var identifiers = []string{"/sys/fs/nfs/net/nfs_client/identifier", "/sys/module/nfs/parameters/nfs4_unique_id"}

// namesakes warns of a node that a server can't tell from others. From version 4.1 on it does that by their host names: of two with the
// same one it takes the second for the first after a restart, and drops what the first holds. One mount does not show it, many at a time do.
func namesakes(version, name string, identifiers []string) []string {
	hasOwn := func(file string) bool {
		text, err := os.ReadFile(file)
		own := strings.TrimSpace(string(text))
		return err == nil && own != "" && own != "(null)"
	}
	if versions[version] < "4.1" || !slices.Contains(common, name) || slices.ContainsFunc(identifiers, hasOwn) {
		return nil
	}
	return []string{fmt.Sprintf("nfs: the node's host name is %q, which other nodes may also have, and the server identifies clients by it; give each node its own name before its first mount", name)}
}

// hostName is what the kernel has at this moment.
func hostName() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // fails for a bad address only
	return unix.ByteSliceToString(u.Nodename[:])
}
