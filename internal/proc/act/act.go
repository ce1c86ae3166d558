// Package act does one act that may hang, in a process that the daemon can kill: the other side of package oneshot.
package act

import (
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/fsmount"
	"github.com/kraken-hpc/imageapi/internal/sys/inroot"
	"github.com/kraken-hpc/imageapi/internal/sys/layer"
)

// Main is a helper. It returns the exit status.
func Main() int {
	// It may be given a secret.
	if unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) != nil {
		return 1
	}
	request, err := wire.Receive(wire.HelperSocket)
	if err != nil || hungUp(0) {
		return 1 // the daemon is gone
	}
	go func() {
		hungUp(-1)
		_ = unix.Kill(unix.Getpid(), unix.SIGKILL) // no process reads its exit status any more
	}()
	// On the first thread, which main has locked: keyrings belong to a thread, and ps(1) shows whether this one waits in the kernel.
	m := answer(request)
	// If the daemon is gone the descriptor goes with this process, and so does what it stands for.
	if wire.Send(wire.HelperSocket, m) != nil || m.Kind == wire.Failed {
		return 1
	}
	return 0
}

// hungUp waits for so many milliseconds, forever if they are negative, for the end of the daemon, and reports whether it has come.
func hungUp(milliseconds int) bool {
	fds := []unix.PollFd{{Fd: wire.HelperSocket}} // of this event one is always told
	n, err := unix.Poll(fds, milliseconds)
	for err == unix.EINTR {
		n, err = unix.Poll(fds, milliseconds)
	}
	return n > 0
}

func answer(request wire.Message) wire.Message {
	fd, failure := malformed()
	if a, ok := acts()[request.Kind]; ok && (a.fields == len(request.Fields) || a.fields < 0) {
		fd, failure = a.do(request)
	}
	switch {
	case failure != nil:
		return failure.Message()
	case fd >= 0:
		return wire.Message{Kind: wire.Ready, Files: []int{fd}}
	default:
		return wire.Message{Kind: wire.Ready}
	}
}

// act has the number of its fields, or -1, and returns a descriptor, or -1 if it has none to return.
type act struct {
	fields int
	do     func(m wire.Message) (int, *wire.Failure)
}

func acts() map[wire.Kind]act {
	return map[wire.Kind]act{
		wire.DoMount:   {-1, mountDetached},
		wire.DoClassic: {6, mountClassic},
		wire.DoUnmount: {2, unmount},
		wire.DoRevive:  {1, revive},
		wire.DoSync:    {1, syncAt},
		wire.DoFlush:   {1, flush},
		wire.DoOpen:    {3, openInside},
		wire.DoLayer:   {5, prepareLayer},
		wire.DoReopen:  {1, reopen},
		wire.DoRead:    {4, read},
		wire.DoWrite:   {2, func(m wire.Message) (int, *wire.Failure) { return write(m.Fields[0], m.Fields[1]) }},
		wire.DoKeyed:   {5, writeWithKey},
		wire.DoAsk:     {-1, ask},
		wire.DoIoctl:   {2, ioctl},
		wire.DoClose:   {0, func(wire.Message) (int, *wire.Failure) { return none("close", unix.Close(wire.HelperInherited)) }},
	}
}

func malformed() (int, *wire.Failure) { return refused("read the request", unix.EPROTO) }

// numbers reads fields that are numbers.
func numbers(fields ...string) ([]int64, bool) {
	all := make([]int64, len(fields))
	for i, field := range fields {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil || n < 0 {
			return nil, false
		}
		all[i] = n
	}
	return all, true
}

// mountDetached makes a file system and a mount of it.
func mountDetached(m wire.Message) (int, *wire.Failure) {
	fs, err := wire.ParseFS(m)
	if err != nil {
		return malformed()
	}
	mount, refusal := fsmount.Make(fs.Type, int(fs.Attr), fs.Options)
	if refusal != nil {
		f := wire.Fail(refusal.Step, refusal.Option, refusal.Err)
		f.Words = refusal.Words
		return -1, f
	}
	return mount, nil
}

func mountClassic(m wire.Message) (int, *wire.Failure) {
	f := m.Fields
	flags, ok := numbers(f[3])
	if !ok {
		return malformed()
	}
	if err := unix.Chdir(f[5]); err != nil {
		return refused("chdir", err)
	}
	return none("mount", unix.Mount(f[1], f[2], f[0], uintptr(flags[0]), f[4]))
}

func unmount(m wire.Message) (int, *wire.Failure) {
	flags, ok := numbers(m.Fields[1])
	if !ok {
		return malformed()
	}
	return none("umount2", unix.Unmount(m.Fields[0], int(flags[0])|unix.UMOUNT_NOFOLLOW))
}

func syncAt(m wire.Message) (int, *wire.Failure) {
	dir, err := unix.Open(m.Fields[0], unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return refused("open", err)
	}
	return none("syncfs", unix.Syncfs(dir))
}

func flush(m wire.Message) (int, *wire.Failure) { return reconfigure(m.Fields[0], "") }

// revive makes a file system writable that was remounted read-only. The kernel refuses that for one with errors.
func revive(m wire.Message) (int, *wire.Failure) { return reconfigure(m.Fields[0], "rw") }

// reconfigure changes a flag of a file system, or none.
func reconfigure(path, flag string) (int, *wire.Failure) {
	fs, err := unix.Fspick(unix.AT_FDCWD, path, unix.FSPICK_CLOEXEC|unix.FSPICK_SYMLINK_NOFOLLOW|unix.FSPICK_NO_AUTOMOUNT)
	if err != nil {
		return refused("fspick", err)
	}
	defer unix.Close(fs)
	if flag != "" {
		if err := unix.FsconfigSetFlag(fs, flag); err != nil {
			return refused("set "+flag, err)
		}
	}
	return none("reconfigure", unix.FsconfigReconfigure(fs))
}

// openInside opens a path as package rootpath does, which says more on it.
func openInside(m wire.Message) (int, *wire.Failure) {
	flags, ok := numbers(m.Fields[2])
	if !ok {
		return malformed()
	}
	dir, err := unix.Open(m.Fields[0], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return refused("open the root", err)
	}
	file, err := inroot.Open(dir, m.Fields[1], int(flags[0]))
	if err != nil {
		return refused("openat2", err)
	}
	return file, nil
}

func prepareLayer(m wire.Message) (int, *wire.Failure) {
	n, ok := numbers(m.Fields[2:]...)
	if !ok {
		return malformed()
	}
	dir, err := layer.Prepare(m.Fields[0], m.Fields[1], layer.Look{UID: uint32(n[0]), GID: uint32(n[1]), Mode: uint32(n[2])})
	if err != nil {
		return -1, wire.Fail(string(err.Step), err.Name, err.Err)
	}
	return dir, nil
}

// reopen also reads the beginning, so that the daemon, which wants to look at it, finds it in memory.
func reopen(m wire.Message) (int, *wire.Failure) {
	flags, ok := numbers(m.Fields[0])
	if !ok {
		return malformed()
	}
	file, err := unix.Open("/proc/self/fd/"+strconv.Itoa(wire.HelperInherited), int(flags[0]), 0)
	if err != nil {
		return refused("open", err)
	}
	if flags[0]&unix.O_DIRECT != 0 { // whether it can be opened so is all that is asked
		return file, nil
	}
	const head = 8192 // as far as the magic numbers of file systems and partition tables are
	if _, err := unix.Pread(file, make([]byte, head), 0); err != nil && err != unix.EISDIR {
		return refused("read", err)
	}
	if err := unix.Fsync(file); err != nil && err != unix.EINVAL && err != unix.EROFS {
		return refused("fsync", err)
	}
	return file, nil
}

// read reads a part of a file into memory that has a descriptor.
func read(m wire.Message) (int, *wire.Failure) {
	n, ok := numbers(m.Fields[1:]...) // flags, offset, length
	if !ok || n[2] > wire.MaxSize {
		return malformed()
	}
	file, err := unix.Open(m.Fields[0], int(n[0])|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return refused("open", err)
	}
	// Whole pages, since O_DIRECT wants the memory to be aligned.
	data, err := unix.Mmap(-1, 0, int(n[2]), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return refused("mmap", err)
	}
	got, err := unix.Pread(file, data, n[1])
	if err != nil {
		return refused("read", err)
	}
	return memory(data[:got])
}

// memory returns a descriptor of memory that holds data.
func memory(data []byte) (int, *wire.Failure) {
	fd, err := unix.MemfdCreate("read", unix.MFD_CLOEXEC)
	if err != nil {
		return refused("memfd_create", err)
	}
	if _, err := unix.Write(fd, data); err != nil {
		return refused("write", err)
	}
	return fd, nil
}

func ioctl(m wire.Message) (int, *wire.Failure) {
	number, err := strconv.ParseUint(m.Fields[0], 10, 32)
	data, malformedHex := wire.ParseHex(m.Fields[1])
	if err != nil || malformedHex != nil || len(data) == 0 {
		return malformed()
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, wire.HelperInherited, uintptr(number), uintptr(unsafe.Pointer(&data[0]))); errno != 0 {
		return refused("ioctl", errno)
	}
	return -1, nil
}

func write(path, data string) (int, *wire.Failure) {
	file, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return refused("open", err)
	}
	n, err := unix.Write(file, []byte(data))
	if err == nil && n < len(data) {
		err = unix.EIO
	}
	return none("write", err)
}

// writeWithKey writes while this process has a key that nobody else has: its process keyring is its own, and belongs to this thread.
// It ends with the process.
func writeWithKey(m wire.Message) (int, *wire.Failure) {
	key, err := wire.ParseHex(m.Fields[2])
	if err != nil {
		return malformed()
	}
	if _, err := unix.AddKey(m.Fields[0], m.Fields[1], key, unix.KEY_SPEC_PROCESS_KEYRING); err != nil {
		return refused("add_key", err)
	}
	return write(m.Fields[3], m.Fields[4])
}

func none(step string, err error) (int, *wire.Failure) {
	if err != nil {
		return refused(step, err)
	}
	return -1, nil
}

func refused(step string, err error) (int, *wire.Failure) { return -1, wire.Fail(step, "", err) }
