package main

import (
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/helper/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/inroot"
	"github.com/kraken-hpc/imageapi/internal/sys/layer"
)

// help does one act that may hang, in a process that the daemon can kill.
func help() int {
	buf := make([]byte, wire.MaxSize)
	n, err := unix.Read(wire.Socket, buf)
	for err == unix.EINTR {
		n, err = unix.Read(wire.Socket, buf)
	}
	if err != nil || n == 0 || hungUp(0) {
		return 1 // the daemon is gone
	}
	go func() {
		if hungUp(-1) {
			os.Exit(1)
		}
	}()
	fd, failure := act(buf[:n])
	if failure != nil {
		send(wire.Socket, failure.Message())
		return 1
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	// If the daemon is gone the descriptor goes with this process, and so does what it stands for.
	if err := unix.Sendmsg(wire.Socket, wire.Encode(wire.Done), rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return 1
	}
	return 0
}

// hungUp waits for so many milliseconds, for ever if they are negative, for the end of the daemon, and tells whether it has come.
func hungUp(milliseconds int) bool {
	fds := []unix.PollFd{{Fd: wire.Socket}} // of this event one is always told
	n, err := unix.Poll(fds, milliseconds)
	for err == unix.EINTR {
		n, err = unix.Poll(fds, milliseconds)
	}
	return n > 0
}

// act returns a descriptor, or -1 if there is none to return.
func act(message []byte) (int, *wire.Failure) {
	kind, fields, err := wire.Decode(message)
	if err != nil {
		return -1, &wire.Failure{Step: "read the request", Errno: unix.EPROTO}
	}
	switch {
	case kind == wire.Mount:
		return mountDetached(fields)
	case kind == wire.Classic && len(fields) == 6:
		return none("mount", mountClassic(fields))
	case kind == wire.Unmount && len(fields) == 2:
		return none("umount2", unmount(fields[0], fields[1]))
	case kind == wire.Revive && len(fields) == 1:
		return revive(fields[0])
	case kind == wire.Sync && len(fields) == 1:
		return syncAt(fields[0])
	case kind == wire.Flush && len(fields) == 1:
		return flush(fields[0])
	case kind == wire.Open && len(fields) == 3:
		return openInside(fields[0], fields[1], fields[2])
	case kind == wire.Layer && len(fields) == 5:
		return prepareLayer(fields)
	case kind == wire.Reopen && len(fields) == 1:
		return reopen(fields[0])
	case kind == wire.Read && len(fields) == 4:
		return read(fields)
	case kind == wire.Write && len(fields) == 2:
		return write(fields[0], fields[1])
	case kind == wire.Keyed && len(fields) == 5:
		return writeWithKey(fields[0], fields[1], fields[2], fields[3], fields[4])
	case kind == wire.Ask && len(fields) > 1:
		return ask(fields[0], fields[1:])
	case kind == wire.Ioctl && len(fields) == 2:
		return none("ioctl", ioctl(fields[0], fields[1]))
	case kind == wire.Close && len(fields) == 0:
		return none("close", unix.Close(wire.Inherited))
	default:
		return -1, &wire.Failure{Step: "read the request", Errno: unix.EPROTO}
	}
}

// mountDetached makes a file system as fields say and a mount of it.
func mountDetached(fields []string) (int, *wire.Failure) {
	kind, attr, options, err := wire.ParseMount(fields)
	if err != nil {
		return -1, &wire.Failure{Step: "read the request", Errno: unix.EPROTO}
	}
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, refused("fsopen", err)
	}
	defer unix.Close(fs)
	for _, o := range options {
		if err := set(fs, o); err != nil {
			return -1, &wire.Failure{Step: "fsconfig", Option: o.String(), Errno: errno(err), Words: words(fs)}
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, &wire.Failure{Step: "create", Errno: errno(err), Words: words(fs)}
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attr))
	if err != nil {
		return -1, &wire.Failure{Step: "fsmount", Errno: errno(err), Words: words(fs)}
	}
	return mount, nil
}

func set(fs int, o wire.Option) error {
	switch o.Sort {
	case wire.Flag:
		return unix.FsconfigSetFlag(fs, o.Key)
	case wire.String:
		return unix.FsconfigSetString(fs, o.Key, o.Value)
	case wire.Directory:
		dir, err := unix.Open(o.Value, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		return unix.FsconfigSetFd(fs, o.Key, dir)
	default:
		return unix.EPROTO
	}
}

// words returns what the kernel says in the context of a file system: one message a read, and an error after the last.
func words(fs int) (said []string) {
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			return said
		}
		said = append(said, string(buf[:n]))
	}
}

func mountClassic(fields []string) error {
	flags, err := strconv.ParseUint(fields[3], 10, 64)
	if err != nil {
		return unix.EPROTO
	}
	if err := unix.Chdir(fields[5]); err != nil {
		return err
	}
	return unix.Mount(fields[1], fields[2], fields[0], uintptr(flags), fields[4])
}

func unmount(path, flags string) error {
	number, err := strconv.Atoi(flags)
	if err != nil {
		return unix.EPROTO
	}
	return unix.Unmount(path, number|unix.UMOUNT_NOFOLLOW)
}

func syncAt(path string) (int, *wire.Failure) {
	dir, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, refused("open", err)
	}
	return none("syncfs", unix.Syncfs(dir))
}

func flush(path string) (int, *wire.Failure) {
	fs, err := unix.Fspick(unix.AT_FDCWD, path, unix.FSPICK_CLOEXEC|unix.FSPICK_SYMLINK_NOFOLLOW|unix.FSPICK_NO_AUTOMOUNT)
	if err != nil {
		return -1, refused("fspick", err)
	}
	defer unix.Close(fs)
	return none("reconfigure", unix.FsconfigReconfigure(fs))
}

// revive makes a file system writable that was remounted read-only. The kernel refuses that for one with errors.
func revive(path string) (int, *wire.Failure) {
	fs, err := unix.Fspick(unix.AT_FDCWD, path, unix.FSPICK_CLOEXEC|unix.FSPICK_SYMLINK_NOFOLLOW|unix.FSPICK_NO_AUTOMOUNT)
	if err != nil {
		return -1, refused("fspick", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetFlag(fs, "rw"); err != nil {
		return -1, refused("set rw", err)
	}
	return none("reconfigure", unix.FsconfigReconfigure(fs))
}

// openInside opens a path as package rootpath does, which says more on it.
func openInside(root, path, flags string) (int, *wire.Failure) {
	number, err := strconv.Atoi(flags)
	if err != nil {
		return -1, &wire.Failure{Step: "read the request", Errno: unix.EPROTO}
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, refused("open the root", err)
	}
	file, err := inroot.Open(dir, path, number)
	if err != nil {
		return -1, refused("openat2", err)
	}
	return file, nil
}

func prepareLayer(fields []string) (int, *wire.Failure) {
	var numbers [3]uint32
	for i, field := range fields[2:] {
		n, err := strconv.ParseUint(field, 10, 32)
		if err != nil {
			return -1, &wire.Failure{Step: "read the request", Errno: unix.EPROTO}
		}
		numbers[i] = uint32(n)
	}
	dir, err := layer.Prepare(fields[0], fields[1], layer.Look{UID: numbers[0], GID: numbers[1], Mode: numbers[2]})
	if err != nil {
		return -1, &wire.Failure{Step: string(err.Step), Option: err.Name, Errno: err.Err}
	}
	return dir, nil
}

// reopen also reads the beginning, so that the daemon, which wants to look at it, finds it in memory.
func reopen(flags string) (int, *wire.Failure) {
	number, err := strconv.Atoi(flags)
	if err != nil {
		return -1, &wire.Failure{Step: "read the request", Errno: unix.EPROTO}
	}
	file, err := unix.Open("/proc/self/fd/"+strconv.Itoa(wire.Inherited), number, 0)
	if err != nil {
		return -1, refused("open", err)
	}
	if number&unix.O_DIRECT != 0 { // whether it can be opened so is all that is asked
		return file, nil
	}
	const head = 8192 // as far as the magic numbers of file systems and partition tables are
	if _, err := unix.Pread(file, make([]byte, head), 0); err != nil && err != unix.EISDIR {
		return -1, refused("read", err)
	}
	if err := unix.Fsync(file); err != nil && err != unix.EINVAL && err != unix.EROFS {
		return -1, refused("fsync", err)
	}
	return file, nil
}

// read reads a part of a file into memory that has a descriptor.
func read(fields []string) (int, *wire.Failure) {
	var numbers [3]int64 // flags, offset, length
	for i, field := range fields[1:] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil || n < 0 || i == 2 && n > wire.MaxSize {
			return -1, &wire.Failure{Step: "read the request", Errno: unix.EPROTO}
		}
		numbers[i] = n
	}
	file, err := unix.Open(fields[0], int(numbers[0])|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, refused("open", err)
	}
	// Whole pages, since O_DIRECT wants the memory to be aligned.
	data, err := unix.Mmap(-1, 0, int(numbers[2]), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return -1, refused("mmap", err)
	}
	n, err := unix.Pread(file, data, numbers[1])
	if err != nil {
		return -1, refused("read", err)
	}
	return memory(data[:n])
}

// memory returns a descriptor of memory that holds data.
func memory(data []byte) (int, *wire.Failure) {
	fd, err := unix.MemfdCreate("read", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, refused("memfd_create", err)
	}
	if _, err := unix.Write(fd, data); err != nil {
		return -1, refused("write", err)
	}
	return fd, nil
}

func ioctl(request, argument string) error {
	number, err := strconv.ParseUint(request, 10, 32)
	if err != nil {
		return unix.EPROTO
	}
	data, err := wire.ParseHex(argument)
	if err != nil || len(data) == 0 {
		return unix.EPROTO
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, wire.Inherited, uintptr(number), uintptr(unsafe.Pointer(&data[0]))); errno != 0 {
		return errno
	}
	return nil
}

func write(path, data string) (int, *wire.Failure) {
	file, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, refused("open", err)
	}
	n, err := unix.Write(file, []byte(data))
	if err == nil && n < len(data) {
		err = unix.EIO
	}
	return none("write", err)
}

// writeWithKey writes while this process has a key that nobody else has: its process keyring is its own, and main has
// locked the thread that it belongs to. It goes when the process ends.
func writeWithKey(kind, description, payload, path, data string) (int, *wire.Failure) {
	key, err := wire.ParseHex(payload)
	if err != nil {
		return -1, &wire.Failure{Step: "read the request", Errno: unix.EPROTO}
	}
	if _, err := unix.AddKey(kind, description, key, unix.KEY_SPEC_PROCESS_KEYRING); err != nil {
		return -1, refused("add_key", err)
	}
	return write(path, data)
}

func none(step string, err error) (int, *wire.Failure) {
	if err != nil {
		return -1, refused(step, err)
	}
	return -1, nil
}

func refused(step string, err error) *wire.Failure {
	return &wire.Failure{Step: step, Errno: errno(err)}
}

// errno returns the number of a system call's error.
func errno(err error) unix.Errno {
	number, ok := err.(unix.Errno)
	if !ok {
		return unix.EPROTO
	}
	return number
}
