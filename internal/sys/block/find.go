package block

import (
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Find describes the block device with a number (st_rdev) from what sysfs(5) tells of it. It never waits for the device: to open
// or close one can mean to wait until it has written what it is to hold. If there is none with this number the error is ENXIO.
func Find(number uint64) (Info, error) {
	const sizeUnit = 512 // whatever the sector size is
	dir, err := filepath.EvalSymlinks(Sysfs(number))
	if err != nil {
		return Info{}, fmt.Errorf("find block device %d:%d: %w", unix.Major(number), unix.Minor(number), unix.ENXIO)
	}
	info := Info{Number: number, Name: filepath.Base(dir)}
	size, err := Attribute(dir, "size")
	if err != nil {
		return Info{}, err
	}
	readOnly, err := Attribute(dir, "ro")
	if err != nil {
		return Info{}, err
	}
	disk := dir
	if _, err := Attribute(dir, "partition"); err == nil {
		disk = filepath.Dir(dir)
	}
	sector, err := Attribute(disk, "queue/logical_block_size")
	if err != nil {
		return Info{}, err
	}
	info.Sequence = sequenceOf(number)
	info.Size, info.ReadOnly, info.Sector = size*sizeUnit, readOnly != 0, int(sector)
	return info, nil
}

// MayHang reports whether a request to a block device can take forever: unless it is a disk of the node, whose driver ends every
// request in a time of its own. All others stand on something: another device that can be suspended, a file, a server.
func MayHang(number uint64) bool {
	dir, err := filepath.EvalSymlinks(Sysfs(number))
	if err != nil {
		return false // it is gone: requests fail
	}
	for _, memory := range []string{"/virtual/block/ram", "/virtual/block/zram"} {
		if strings.Contains(dir, memory) {
			return false
		}
	}
	// Logical devices and multipath NVMe; disks by iSCSI and by Fibre Channel; RBD.
	for _, far := range []string{"/devices/virtual/", "/session", "/rport-", "/devices/rbd/"} {
		if strings.Contains(dir, far) {
			return true
		}
	}
	return false
}
