// Package define makes the definitions that several suites send.
package define

import "github.com/kraken-hpc/imageapi/models"

const root, mount = "root", "mount"

// Loopback is a loop device over a file of the node.
func Loopback(path string) *models.Attach {
	return &models.Attach{Kind: "loopback", Loopback: &models.AttachLoopback{Path: &path, Base: new(root)}}
}

// LoopbackIn is a loop device over a file in a mount.
func LoopbackIn(m *models.Mount, path string) *models.Attach {
	return &models.Attach{Kind: "loopback", Loopback: &models.AttachLoopback{Path: &path, Base: new(mount), Mount: m}}
}

// Local is a device of the node.
func Local(path string) *models.Attach {
	return &models.Attach{Kind: "local", Local: &models.AttachLocal{Path: &path}}
}

// Device is the file system on an attachment.
func Device(a *models.Attach, fsType string, options ...string) *models.Mount {
	return &models.Mount{Kind: "attach", Attach: &models.MountAttach{Attach: a, FsType: &fsType, MountOptions: options}}
}

// Squash is a SquashFS over a loop device over a file.
func Squash(image string) *models.Mount { return Device(Loopback(image), "squashfs") }

// Bind is a directory of the node.
func Bind(path string, change ...func(*models.MountBind)) *models.Mount {
	b := &models.MountBind{Path: &path, Base: new(root)}
	for _, c := range change {
		c(b)
	}
	return &models.Mount{Kind: "bind", Bind: b}
}

// BindIn is a directory of a mount.
func BindIn(m *models.Mount, path string) *models.Mount {
	return &models.Mount{Kind: "bind", Bind: &models.MountBind{Path: &path, Base: new(mount), Mount: m}}
}

// NFS is a directory of the NFS server of the guest.
func NFS(path string, change ...func(*models.MountNfs)) *models.Mount {
	d := &models.MountNfs{Host: new("127.0.0.1"), Path: &path}
	for _, c := range change {
		c(d)
	}
	return &models.Mount{Kind: "nfs", Nfs: d}
}

// Overlay has its upper layer in memory.
func Overlay(lower ...*models.Mount) *models.Mount {
	return &models.Mount{Kind: "overlay", Overlay: &models.MountOverlay{Lower: lower}}
}

// OverlayOn is an overlay with another upper layer.
func OverlayOn(upper *models.MountOverlayUpper, lower ...*models.Mount) *models.Mount {
	m := Overlay(lower...)
	m.Overlay.Upper = upper
	return m
}
