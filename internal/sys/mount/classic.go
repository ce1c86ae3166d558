package mount

import (
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/kmsg"
)

// Classic mounts with mount(2), for what the kernel's newer interface does not take. Relative paths in data are
// resolved from dir. Of attr only ReadOnly, NoSUID, NoDev and NoExec count. For speaker see [FS.Label].
func Classic(g failpoint.Hook, dir, fsType, label, speaker, target string, attr Attr, data string) error {
	log := kmsg.Listen(kmsg.About(speaker))
	defer log.Close()
	err := g.Do("mount classic", func() error {
		return inDirectory(dir, func() error { return unix.Mount(label, target, fsType, ClassicFlags(attr), data) })
	})
	if err != nil {
		return Refused(&Error{Op: "mount", Type: fsType, Target: target, Flags: attr, Words: log.Lines(), Err: err})
	}
	return nil
}

// ClassicFlags are the attributes as mount(2) takes them.
func ClassicFlags(attr Attr) uintptr {
	var flags uintptr
	for _, f := range []struct {
		attr Attr
		flag uintptr
	}{{ReadOnly, unix.MS_RDONLY}, {NoSUID, unix.MS_NOSUID}, {NoDev, unix.MS_NODEV}, {NoExec, unix.MS_NOEXEC}} {
		if attr&f.attr != 0 {
			flags |= f.flag
		}
	}
	return flags
}

// inDirectory runs do in a thread of its own whose working directory is dir. The thread ends with it.
func inDirectory(dir string, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: nobody else gets this thread
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Chdir(dir)
		}
		if err == nil {
			err = do()
			_ = unix.Chdir("/") // the thread may end a little later, and dir would be in use
		}
		done <- err
	}()
	return <-done
}
