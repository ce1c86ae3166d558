// Package inroot resolves paths that clients or images chose inside a directory tree and never outside it: what package
// rootpath, which says more, and the programs beside it have in common. It stays free of package fmt.
package inroot

import "golang.org/x/sys/unix"

// tries is how often a resolution begins again when a ".." in it met a rename or a mount somewhere on the node:
// the kernel then answers EAGAIN, since it can't report whether the path left the tree.
const tries = 128

// cached is RESOLVE_CACHED of openat2(2).
const cached = 0x20

// OpenCached is Open as far as the kernel has all that it needs in memory; otherwise, or when a rename comes in between, the error is
// EAGAIN (RESOLVE_CACHED, Linux 5.12). With O_PATH it waits for nothing.
func OpenCached(dir int, unsafePath string, flags int) (fd int, err error) {
	return unix.Openat2(dir, unsafePath, &unix.OpenHow{
		Flags:   uint64(flags),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | cached,
	})
}

// Open opens unsafePath as if the directory dir, for which O_PATH is enough, were "/" (openat2(2), Linux 5.6). Magic links
// are refused. The flags are those of open(2) without O_CREAT.
func Open(dir int, unsafePath string, flags int) (fd int, err error) {
	how := unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range tries {
		fd, err = unix.Openat2(dir, unsafePath, &how)
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
	}
	return fd, err
}
