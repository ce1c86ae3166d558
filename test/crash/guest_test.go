package crash

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/define"
)

// remote are the structures that stand on the servers of the guest of test/vm.
func remote() []structure {
	return []structure{
		{
			name: "nfs", path: "/mount", levels: 2, guest: true, works: all(reads("image"), writes),
			define: func(l *lab) any { return define.Overlay(l.nfs()) },
		}, {
			name: "nfs image", path: "/container", levels: 5, guest: true, works: runs,
			define: func(l *lab) any {
				image := define.LoopbackIn(l.nfs(), "image")
				return running(define.Overlay(define.Device(image, "squashfs")))
			},
		}, {
			name: "iscsi", path: "/mount", levels: 2, guest: true, works: all(reads("bin/busybox"), writes),
			define: func(l *lab) any { return define.Device(l.unit(), "ext4") },
		}, {
			name: "rbd", path: "/mount", levels: 3, guest: true, works: all(reads("bin/busybox"), writes),
			define: func(l *lab) any { return define.Overlay(define.Device(l.mapped(), "squashfs")) },
		}, {
			name: "verity", path: "/container", levels: 5, guest: true, works: runs,
			define: func(l *lab) any {
				tree := filepath.Join(l.images, "tree.verity")
				return running(define.Overlay(define.Device(l.sealed(define.Loopback(l.image()), tree), "squashfs")))
			},
		}, {
			name: "verity iscsi", path: "/mount", levels: 2, guest: true, works: all(reads("bin/busybox"), refuses),
			define: func(l *lab) any { return define.Device(l.sealed(l.unit(), ""), "ext4") },
		},
	}
}

// sealed adds verity to an attachment, with the hash tree behind the data of it or, if it is not empty, in a file.
func (l *lab) sealed(attach *models.Attach, tree string) *models.Attach {
	verity := &models.AttachVerity{OnCorruption: new(models.AttachVerityOnCorruptionStop)}
	if tree != "" {
		root, _ := testkit.HashTree(l, l.image(), tree)
		verity.RootHash, verity.HashDevice = &root, define.Loopback(tree)
	} else {
		const size = 32 << 20 // of the file system, half of the disk
		o := l.must(http.MethodPost, "/attach", attach)
		testkit.Run(l, "mkfs.ext4", "-q", "-F", "-b", "4096", "-d", testkit.Busybox(l), o.DeviceFile, "32M")
		verity.RootHash, verity.HashOffset = new(testkit.HashDevice(l, o.DeviceFile, size)), size
		l.must(http.MethodDelete, fmt.Sprintf("/attach?id=%d", o.ID), nil)
	}
	attach.Verity = verity
	return attach
}

// export makes a directory of the NFS server with an image.
func (l *lab) export() string {
	testkit.StartNFS(l)
	dir, err := os.MkdirTemp(testkit.NFS, "crash-")
	check(l, err)
	l.Cleanup(func() { check(l, os.RemoveAll(dir)) })
	testkit.Run(l, "cp", l.image(), filepath.Join(dir, "image"))
	return dir
}

func (l *lab) nfs() *models.Mount {
	return define.NFS(l.export(), func(d *models.MountNfs) { d.Ro = new(true) })
}

// unit makes a target with one logical unit that holds busybox.
func (l *lab) unit() *models.Attach {
	const secret = "canary-of-the-node"
	target := testkit.StartTarget(l, "crash", "-l", "1", "-c", "node:"+secret)
	unit := &models.Attach{Kind: "iscsi", Iscsi: &models.AttachIscsi{
		Initiator: new("iqn.2026-05.org.example:node"), Target: &target.IQN, Host: new("localhost"),
		Auth: &models.IscsiAuth{Username: "node", Secret: new(secret)},
	}}
	l.fill(unit, "mkfs.ext4", "-q", "-F", "-d", testkit.Busybox(l))
	return unit
}

// mapped makes an image of the Ceph cluster that holds a SquashFS.
func (l *lab) mapped() *models.Attach {
	ceph := testkit.StartCeph(l)
	ceph.Image(l, "crash")
	image := func(ro bool) *models.Attach {
		return &models.Attach{Kind: "rbd", Rbd: &models.AttachRbd{
			Monitors: []string{ceph.Monitor}, Pool: new("rbd"), Image: new("crash"),
			Options: &models.RbdOptions{Name: new("admin"), Secret: &ceph.Secret, Ro: ro},
		}}
	}
	l.fill(image(false), "dd", "if="+l.image(), "bs=1M", "oflag=direct", "conv=sync", "status=none", "of=")
	return image(true)
}

// fill has a program write to a device, whose path is added to the last argument if that ends in "=", or else follows.
func (l *lab) fill(attach *models.Attach, program ...string) {
	o := l.must(http.MethodPost, "/attach", attach)
	last := len(program) - 1
	if strings.HasSuffix(program[last], "=") {
		program[last] += o.DeviceFile
	} else {
		program = append(program, o.DeviceFile)
	}
	testkit.Run(l, program[0], program[1:]...)
	l.must(http.MethodDelete, fmt.Sprintf("/attach?id=%d", o.ID), nil)
}

// connections are what the kernel has of servers: sessions, disks, mapped images and the keys to them, and the devices of the device
// mapper. Nobody else has any in the guest.
func connections() (all []string) {
	for _, pattern := range []string{"/sys/block/dm-*", "/sys/class/iscsi_*/[sc]*", "/sys/class/scsi_device/*", "/sys/bus/rbd/devices/*"} {
		found, _ := filepath.Glob(pattern) // the pattern is well-formed
		all = append(all, found...)
	}
	keys, _ := os.ReadFile("/proc/keys") // a kernel without keys has none
	for line := range strings.Lines(string(keys)) {
		if fields := strings.Fields(line); len(fields) > 8 && slices.Contains([]string{"ceph", "logon"}, fields[7]) {
			all = append(all, "key "+strings.Join(fields[7:], " "))
		}
	}
	return all
}
