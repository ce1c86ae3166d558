package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// mapperOn makes a device of the device mapper on another block device by hand, and returns its names.
func mapperOn(t *testing.T, below string) (name, device string) {
	t.Helper()
	testkit.Guest(t)
	testkit.Run(t, "modprobe", "dm_mod")
	name = "held-" + filepath.Base(below)
	sectors := strings.TrimSpace(testkit.Run(t, "blockdev", "--getsz", below))
	testkit.Run(t, "dmsetup", "create", "--noudevsync", name, "--table", fmt.Sprintf("0 %s linear %s 0", sectors, below))
	return name, strings.TrimSpace(testkit.Run(t, "dmsetup", "info", "--columns", "--noheadings", "--options", "blkdevname", name))
}

// The device mapper on a device holds it, whether or not its own device is in use.
func TestMapperHolds(t *testing.T) {
	t.Parallel()
	testkit.Guest(t)
	n := newNode(t)
	a := n.attach(t, loopback(testkit.Ext4(t, t.TempDir())))
	n.refuses(t, "/attach", a.ID, a.DeviceFile, holder{name: "device mapper", hold: func(t *testing.T, path string) (string, func()) {
		name, device := mapperOn(t, path)
		return fmt.Sprintf("the block device %s is built on it", device), func() { testkit.Run(t, "dmsetup", "remove", "--noudevsync", name) }
	}})
}

// A disk that fails, and then goes, is shown so, with what stands on it.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	testkit.Guest(t)
	n := newNode(t)
	for fsType, make := range map[string]func(testing.TB, string) string{"ext4": testkit.Ext4, "xfs": testkit.Xfs, "btrfs": testkit.Btrfs} {
		below := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", make(t, t.TempDir())))
		name, mapped := mapperOn(t, below)
		a := n.attach(t, &models.Attach{Kind: "local", Local: &models.AttachLocal{Path: to("/dev/" + mapped)}})
		m := n.mount(t, device(attachID(a.ID), fsType))
		above := n.mount(t, overlay(mountID(m.ID)))

		// A change of an open file needs nothing to be read, which could fail before anything is written.
		f, err := os.Create(filepath.Join(m.Mountpoint, "new"))
		must(t, err)
		testkit.Run(t, "dmsetup", "wipe_table", "--noudevsync", "--noflush", "--nolockfs", name)
		_ = f.Chmod(0o600)
		if err := f.Sync(); err == nil {
			t.Errorf("%s writes to a disk that fails", fsType)
		}
		_ = f.Close()
		if fsType != "ext4" || !silent(t) {
			n.becomesBroken(t, "/mount", m.ID, "the file system ("+fsType+")")
			n.becomesBroken(t, "/mount", above.ID, "the object depends on")
		}
		n.remove(t, http.StatusOK, "/mount", above.ID)
		n.remove(t, http.StatusOK, "/mount", m.ID)

		testkit.Run(t, "dmsetup", "remove", "--noudevsync", name)
		n.becomesBroken(t, "/attach", a.ID, "the device is gone")
		n.remove(t, http.StatusOK, "/attach", a.ID)
		testkit.Run(t, "losetup", "-d", below)
	}
}
