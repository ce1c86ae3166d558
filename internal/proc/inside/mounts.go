package inside

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/fsmount"
)

// filesystem describes a file system of the kernel.
type filesystem struct {
	kind    string
	path    string // where it goes
	attrs   int    // MOUNT_ATTR_*
	options []fsmount.Option
}

const (
	noSetuid = unix.MOUNT_ATTR_NOSUID
	noDevice = unix.MOUNT_ATTR_NODEV
	noExec   = unix.MOUNT_ATTR_NOEXEC
)

// inRoot is what an image needs a directory for. systemd would mount a /run itself, but only after it looked there for what
// its surroundings are.
func inRoot(systemd bool) []filesystem {
	all := []filesystem{
		{kind: "proc", path: "proc", attrs: noSetuid | noDevice | noExec},
		{kind: "sysfs", path: "sys", attrs: noSetuid | noDevice | noExec | unix.MOUNT_ATTR_RDONLY},
		{kind: "tmpfs", path: "dev", attrs: noSetuid, options: options("mode=0755", "size=4m")},
	}
	if systemd {
		all = append(all,
			filesystem{kind: "tmpfs", path: "run", attrs: noSetuid | noDevice, options: options("mode=0755", "size=20%")},
			filesystem{kind: "tmpfs", path: "tmp", attrs: noSetuid | noDevice, options: options("mode=1777", "size=20%")})
	}
	return all
}

// inDev is what goes into the container's /dev. Group 5 is tty, wherever it matters who owns a terminal.
func inDev() []filesystem {
	return []filesystem{
		{kind: "devpts", path: "pts", attrs: noSetuid | noExec, options: options("newinstance", "ptmxmode=0666", "mode=0620", "gid=5")},
		{kind: "tmpfs", path: "shm", attrs: noSetuid | noDevice, options: options("mode=1777")},
		{kind: "mqueue", path: "mqueue", attrs: noSetuid | noDevice | noExec},
	}
}

// mountKernel mounts the kernel's file systems below root and returns descriptors of their roots by their paths.
// An image is untrusted: each mountpoint is opened without following a link, and then used by its descriptor.
func mountKernel(root int, config wire.Config) (roots map[string]int, failure *wire.Failure) {
	all := inRoot(config.Systemd)
	points, failure := mountpoints(root, all)
	if failure != nil {
		return nil, failure
	}
	roots = map[string]int{}
	for i, fs := range all {
		if fs.path == "dev" {
			roots[fs.path], failure = mountDev(config, fs, points[i])
		} else {
			roots[fs.path], failure = attach(fs, points[i])
		}
		if failure != nil {
			return nil, failure
		}
	}
	for _, fs := range inDev() {
		if failure := attachInDev(fs, roots["dev"]); failure != nil {
			return nil, failure
		}
	}
	return roots, nil
}

// mountpoints opens the directories for file systems. Those that are missing are made; if the root can't be written all that are
// missing are named.
func mountpoints(root int, all []filesystem) (fds []int, failure *wire.Failure) {
	var missing []string
	for _, fs := range all {
		fd, err := openDir(root, fs.path)
		if err == unix.ENOENT {
			err = unix.Mkdirat(root, fs.path, 0o755)
			if err == nil {
				fd, err = openDir(root, fs.path)
			}
		}
		switch err {
		case nil:
			fds = append(fds, fd)
		case unix.EROFS:
			missing = append(missing, "/"+fs.path)
		case unix.ELOOP, unix.ENOTDIR, unix.EEXIST:
			return nil, &wire.Failure{Reason: wire.NotDirectory, Path: "/" + fs.path}
		default:
			return nil, wire.Fail("open the mountpoint", "/"+fs.path, err)
		}
	}
	if missing != nil {
		return nil, &wire.Failure{Reason: wire.MissingDirs, Path: strings.Join(missing, " ")}
	}
	return fds, nil
}

func openDir(root int, path string) (int, error) {
	return unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// attachInDev mounts a file system on a directory in /dev, which it makes unless it is the node's /dev and has it.
// Message queues are left out if the kernel has none.
func attachInDev(fs filesystem, dev int) *wire.Failure {
	if err := unix.Mkdirat(dev, fs.path, 0o755); err != nil && err != unix.EEXIST {
		return wire.Fail("make the directory", "/dev/"+fs.path, err)
	}
	point, err := openDir(dev, fs.path)
	if err != nil {
		return wire.Fail("open the mountpoint", "/dev/"+fs.path, err)
	}
	_, failure := attach(fs, point)
	if failure != nil && failure.Errno == unix.ENODEV && fs.kind == "mqueue" {
		return nil
	}
	return failure
}

// attach makes a file system, mounts it at point, closes that, and returns a descriptor of the new mount's root.
func attach(fs filesystem, point int) (int, *wire.Failure) {
	defer unix.Close(point)
	mount, refusal := fsmount.Make(fs.kind, fs.attrs, append(options("source="+fs.kind), fs.options...))
	if refusal != nil {
		return -1, wire.Fail("mount "+fs.kind, "", refusal.Err)
	}
	if err := unix.MoveMount(mount, "", point, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return -1, wire.Fail("attach "+fs.kind, "", err)
	}
	return mount, nil
}

// options makes options of their usual form.
func options(texts ...string) (all []fsmount.Option) {
	for _, text := range texts {
		key, value, hasValue := strings.Cut(text, "=")
		sort := fsmount.Flag
		if hasValue {
			sort = fsmount.String
		}
		all = append(all, fsmount.Option{Key: key, Value: value, Sort: sort})
	}
	return all
}

// coverReadOnly mounts a file or directory over itself, read-only.
func coverReadOnly(dir int, path string) error {
	return cover(dir, path, dir, path, unix.MOUNT_ATTR_RDONLY)
}

// protectKernel makes read-only what in /proc is the node's and is written to by root without any capability: how the kernel is
// set up, and what programs it runs as the node's root. An image that boots like a machine writes its settings there unasked; what may
// mount can take the protection away again. With ownNet the container may set up its network, so those settings stay writable.
func protectKernel(proc int, ownNet bool) *wire.Failure {
	net := -1
	if ownNet {
		var err error
		if net, err = unix.OpenTree(proc, "sys/net", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
			return wire.Fail("copy the mount", "/proc/sys/net", err)
		}
		defer unix.Close(net)
	}
	for _, name := range []string{"sys", "sysrq-trigger", "irq", "bus", "fs", "mtrr", "scsi", "driver", "acpi", "asound"} {
		if err := coverReadOnly(proc, name); err != nil && err != unix.ENOENT {
			return wire.Fail("protect", "/proc/"+name, err)
		}
	}
	if !ownNet {
		return nil
	}
	if err := unix.MoveMount(net, "", proc, "sys/net", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return wire.Fail("attach", "/proc/sys/net", err)
	}
	return nil
}

// cover mounts a file or directory, without what is mounted below it, over another one.
func cover(dir int, path string, overDir int, over string, attrs uint64) error {
	tree, err := unix.OpenTree(dir, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attrs}); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", overDir, over, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// populate makes the nodes and links of a /dev. There is no core: it would be a link to the node's memory, and nothing
// needs it.
func populate(dev int) error {
	nodes := []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}
	for _, n := range nodes {
		if err := unix.Mknodat(dev, n.name, unix.S_IFCHR|0o666, int(unix.Mkdev(n.major, n.minor))); err != nil {
			return err
		}
	}
	links := [][2]string{{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"}}
	for _, l := range links {
		if err := unix.Symlinkat(l[1], dev, l[0]); err != nil {
			return err
		}
	}
	return nil
}
