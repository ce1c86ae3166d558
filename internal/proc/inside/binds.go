package inside

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// attachBinds puts the trees of the node into the root, each at its place. What the image has put there decides nothing but
// whether that works: no link is followed, and what is there is used by its descriptor.
func attachBinds(root int, binds []wire.Bind) *wire.Failure {
	for i, b := range binds {
		point, err := reach(root, b.Target, b.File)
		if err == nil {
			err = attachTree(wire.InitBinds+i, point)
		}
		if err != nil {
			return unfitBind(i, b, err)
		}
	}
	return nil
}

func unfitBind(i int, b wire.Bind, err error) *wire.Failure {
	f := wire.Fail("bind at", b.Target, err)
	f.Reason, f.Field = wire.Unfit, "binds["+strconv.Itoa(i)+"].target"
	switch {
	case err == unix.EROFS:
		f.Detail = "missing, and cannot be created; create it in the image, or put an overlay above it"
	case err == unix.ELOOP:
		f.Errno, f.Detail = 0, "a link is there or on the way, which is not followed"
	case err == unix.EISDIR:
		f.Detail = "the source is none"
	}
	return f
}

// attachTree attaches a tree to the mountpoint that it closes. Other descriptors of the tree stay valid.
func attachTree(tree, point int) error {
	defer unix.Close(point)
	return unix.MoveMount(tree, "", point, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// reach opens a directory, or a file, below dir and makes what is missing of its path, in which there are no "..".
func reach(dir int, path string, file bool) (int, error) {
	at := dir
	names := strings.Split(strings.Trim(path, "/"), "/")
	for i, name := range names {
		next, err := step(at, name, file && i == len(names)-1)
		if at != dir {
			unix.Close(at)
		}
		if err != nil {
			return -1, err
		}
		at = next
	}
	return at, nil
}

// step opens an entry of a directory and makes it if it is missing.
func step(dir int, name string, file bool) (int, error) {
	fd, err := openEntry(dir, name, file)
	if err != unix.ENOENT {
		return fd, err
	}
	if file {
		err = unix.Mknodat(dir, name, unix.S_IFREG|0o644, 0)
	} else {
		err = unix.Mkdirat(dir, name, 0o755)
	}
	if err != nil && err != unix.EEXIST {
		return -1, err
	}
	return openEntry(dir, name, file)
}

// openEntry opens a directory, or what is none.
func openEntry(dir int, name string, file bool) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	if !file {
		how.Flags |= unix.O_DIRECTORY
		return unix.Openat2(dir, name, &how)
	}
	fd, err := unix.Openat2(dir, name, &how)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = unix.EISDIR
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
