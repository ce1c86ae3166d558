package rbd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// Identity tells one mapping from all others. It does not change while an image is mapped.
type Identity struct {
	ID        int    `json:"id"` // N in /dev/rbdN; given out again when free
	Number    uint64 `json:"number"`
	Sequence  uint64 `json:"seq,omitempty"` // /sys/block/rbdN/diskseq: no two disks of one boot share one. 0 before Linux 5.15
	Cluster   string `json:"cluster"`       // its fsid
	Pool      string `json:"pool"`
	Namespace string `json:"namespace,omitempty"`
	Image     string `json:"image"`
	ImageID   string `json:"image_id"` // survives a renaming
	Snapshot  string `json:"snapshot,omitempty"`
	Key       string `json:"key"` // the description of the key that it was mapped with, or empty
}

// Device is a mapped image.
type Device struct {
	Identity
	ReadOnly bool
}

// Name is the kernel's: "rbd3".
func (d Identity) Name() string { return "rbd" + strconv.Itoa(d.ID) }

// sameImage reports whether both are the same image itself, whatever it is called.
func (d Identity) sameImage(other Identity) bool {
	return d.Cluster == other.Cluster && d.Pool == other.Pool && d.Namespace == other.Namespace &&
		d.ImageID == other.ImageID && d.Snapshot == other.Snapshot
}

// Devices returns all images that are mapped on this machine, by us or by others.
func (b *Bus) Devices() ([]Device, error) {
	entries, err := os.ReadDir(filepath.Join(dir, "devices"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list mapped images: %w", err)
	}
	var all []Device
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		d, err := b.device(id)
		switch {
		case err == nil:
			all = append(all, d)
		case !gone(err):
			return nil, err
		}
	}
	return all, nil
}

// gone reports whether err is that of a device that is just coming or going.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// device reads what sysfs says about one. Another image can get its number while the files are read: they count when they say the same twice.
func (b *Bus) device(id int) (Device, error) {
	const tries = 10
	before, err := b.read(id)
	for range tries {
		now, again := b.read(id)
		if err == nil && again == nil && now == before || err != nil && again != nil {
			return now, again
		}
		before, err = now, again
	}
	return Device{}, fmt.Errorf("look at mapped image %s: its mapping changes all the time", before.Name())
}

// read reads the files of one once.
func (b *Bus) read(id int) (Device, error) {
	d := Device{Identity: Identity{ID: id}}
	var number, sequence, readOnly, config string
	own := filepath.Join(dir, "devices", strconv.Itoa(id))
	disk := filepath.Join("/sys/block", d.Name())
	for _, a := range []struct {
		path string
		to   *string
	}{
		{own + "/cluster_fsid", &d.Cluster}, {own + "/pool", &d.Pool}, {own + "/pool_ns", &d.Namespace},
		{own + "/name", &d.Image}, {own + "/image_id", &d.ImageID}, {own + "/current_snap", &d.Snapshot},
		{own + "/config_info", &config}, {disk + "/dev", &number}, {disk + "/ro", &readOnly}, {disk + "/diskseq", &sequence},
	} {
		text, err := os.ReadFile(a.path)
		if errors.Is(err, fs.ErrNotExist) && a.to == &sequence && number != "" {
			continue // an older kernel
		}
		if err != nil {
			return Device{}, fmt.Errorf("look at mapped image %s: %w", d.Name(), err)
		}
		*a.to = strings.TrimSpace(string(text))
	}
	if d.Snapshot == head {
		d.Snapshot = ""
	}
	d.Key, d.ReadOnly = keyOf(config), readOnly == "1"
	var major, minor uint32
	if _, err := fmt.Sscanf(number, "%d:%d", &major, &minor); err != nil {
		return Device{}, fmt.Errorf("look at mapped image %s: number %q: %w", d.Name(), number, err)
	}
	d.Number = unix.Mkdev(major, minor)
	if sequence != "" {
		var err error
		if d.Sequence, err = strconv.ParseUint(sequence, 10, 64); err != nil {
			return Device{}, fmt.Errorf("look at mapped image %s: %w", d.Name(), err)
		}
	}
	return d, nil
}

// keyOf finds the description of the key in what a device was mapped with.
func keyOf(config string) string {
	words := strings.Fields(config)
	if len(words) < 2 {
		return ""
	}
	for option := range strings.SplitSeq(words[1], ",") {
		if key, ok := strings.CutPrefix(option, "key="); ok {
			return key
		}
	}
	return ""
}

// byKey returns the device that was mapped with a key.
func (b *Bus) byKey(key string) (Device, bool, error) {
	all, err := b.Devices()
	i := slices.IndexFunc(all, func(d Device) bool { return d.Key == key })
	if i < 0 {
		return Device{}, false, err
	}
	return all[i], true, nil
}

// Rival returns a device through which this machine can write to the image that d can write to, and which was there
// before d.
func (b *Bus) Rival(d Device) (Device, bool, error) {
	if d.ReadOnly {
		return Device{}, false, nil
	}
	all, err := b.Devices()
	i := slices.IndexFunc(all, func(other Device) bool {
		return other.ID != d.ID && !other.ReadOnly && other.sameImage(d.Identity) && other.Sequence <= d.Sequence
	})
	if i < 0 {
		return Device{}, false, err
	}
	return all[i], true, nil
}

// Look makes sure that a device is still the mapping that it was. It waits for nothing.
func (b *Bus) Look(d Identity) error {
	now, err := b.device(d.ID)
	switch {
	case gone(err):
		return errs.New(errs.Conflict, "image %s/%s is no longer mapped as /dev/%s: another program unmapped it; delete the attachment and create it again", d.Pool, d.Image, d.Name())
	case err != nil:
		return err
	case now.Identity != d:
		return errs.New(errs.Conflict, "/dev/%s is another mapping now, of %s/%s: another program unmapped the original one; delete the attachment and create it again", d.Name(), now.Pool, now.Image)
	}
	return nil
}

// present reports whether a device is still the mapping that it was.
func (b *Bus) present(d Identity) (bool, error) {
	now, err := b.device(d.ID)
	if gone(err) {
		return false, nil
	}
	return err == nil && now.Identity == d, err
}
