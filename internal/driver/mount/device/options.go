package device

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/superblock"
)

// facts looks at the file system on source before the kernel does. What can't be read is left to the kernel's judgement, unless the
// device does not reply.
func (u *unit) facts(ctx context.Context, source source, remote bool) (superblock.Facts, error) {
	facts, err := superblock.Look(u.FSType, u.reader(ctx, source, remote))
	if errs.Is(err, errs.Deadline) {
		return facts, err
	}
	return facts, nil
}

// reader reads the device of source.
func (u *unit) reader(ctx context.Context, source source, remote bool) superblock.ReadFunc {
	return func(offset, length int64) ([]byte, error) {
		if remote && u.m.Helper != nil {
			return u.m.Helper.Read(ctx, source.path, unix.O_RDONLY, offset, length)
		}
		return readDevice(source.path, offset, length)
	}
}

func readDevice(path string, offset, length int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, length)
	_, err = f.ReadAt(data, offset)
	return data, err
}

// fs describes the mount of the file system on source, of which facts are known, with warnings for the client.
func (u *unit) fs(source source, facts superblock.Facts) (fs mount.FS, warnings []string, err error) {
	readOnlyType := slices.Contains(readOnlyTypes, u.FSType)
	if source.readOnly && u.parsed.Writable && !readOnlyType {
		return fs, nil, errs.New(errs.Invalid, "mount %s %s: option \"rw\": the device is read-only", u.FSType, source.path)
	}
	if facts.More != "" {
		return fs, nil, errs.New(errs.Invalid, "mount %s %s: the file system needs %s, and a mount has one: make an image that is whole", u.FSType, source.path, facts.More)
	}
	fs = mount.FS{Type: u.FSType, Source: source.path, Device: true, Params: u.onErrors(), Attr: u.parsed.Attr | mount.OnNode}
	if u.parsed.ReadOnly || source.readOnly || readOnlyType {
		if facts.Orphans && !source.readOnly {
			return fs, nil, errs.New(errs.Invalid, "mount %s %s read-only: the kernel would write to it all the same, since files that were deleted in it were open when it was last used: "+
				"make its device read-only (field \"ro\" of the attachment, or blockdev --setro), or mount it writable once", u.FSType, source.path)
		}
		warnings = u.leaveJournal(&fs, facts)
		// For the file system: then its device is opened for reading only. For the mount: it says the same.
		fs.Params = append(fs.Params, mount.Param{Key: "ro"})
		fs.Attr |= mount.ReadOnly
	}
	return fs, warnings, nil
}

// onErrors returns the options of the definition. Unless they say what an error in the file system does, the superblock does not
// either: it could stop the node.
func (u *unit) onErrors() []mount.Param {
	keeps := slices.Contains([]string{"ext2", "ext3", "ext4", "nilfs2"}, u.FSType) // what to do in its superblock
	if !keeps || u.has("errors") {
		return slices.Clone(u.parsed.Params)
	}
	return append([]mount.Param{{Key: "errors", Value: "remount-ro", HasValue: true}}, u.parsed.Params...)
}

func (u *unit) has(key string) bool {
	return slices.ContainsFunc(u.parsed.Params, func(p mount.Param) bool { return p.Key == key })
}

// leaveJournal adds the option that keeps the kernel from replaying the journal, and a warning if that leaves something out. XFS
// writes to a log that is clean, too.
func (u *unit) leaveJournal(fs *mount.FS, facts superblock.Facts) (warnings []string) {
	option, given := mount.Param{}, false
	switch u.FSType {
	case "ext3", "ext4":
		option, given = mount.Param{Key: "noload"}, !facts.Dirty || u.has("noload") || u.has("norecovery")
	case "xfs":
		option, given = mount.Param{Key: "norecovery"}, u.has("norecovery")
	case "f2fs", "nilfs2": // their state is not looked at
		option, given = mount.Param{Key: "norecovery"}, u.has("norecovery")
	case "btrfs":
		option, given = mount.Param{Key: "rescue", Value: "nologreplay", HasValue: true}, !facts.Dirty || u.has("nologreplay") || u.rescues()
	default:
		return nil
	}
	if given {
		return nil
	}
	fs.Params = append(fs.Params, option)
	if facts.Dirty {
		warnings = []string{fmt.Sprintf("attach.mount_options: added %q: the file system was not unmounted cleanly, and a read-only mount does not replay its journal: the last changes are missing", option)}
	}
	return warnings
}

// rescues reports whether an option of btrfs leaves the log alone.
func (u *unit) rescues() bool {
	return slices.ContainsFunc(u.parsed.Params, func(p mount.Param) bool {
		ways := strings.Split(p.Value, ":")
		return p.Key == "rescue" && (slices.Contains(ways, "nologreplay") || slices.Contains(ways, "all"))
	})
}

// describe tells in which way a file system is mounted: two mounts of one device have to be mounted in the same. Subvolumes of a btrfs
// are parts of one file system.
func describe(fs mount.FS) string {
	params := slices.Clone(fs.Params)
	slices.SortStableFunc(params, func(a, b mount.Param) int { return strings.Compare(a.Key, b.Key) }) // of one name the last one counts
	words := []string{fs.Type}
	for _, p := range params {
		if fs.Type != "btrfs" || p.Key != "subvol" && p.Key != "subvolid" {
			words = append(words, p.String())
		}
	}
	return strings.Join(words, ",")
}
