// Package driver says what a driver is.
//
// A driver turns definitions of one kind (a loopback device, an overlay, a container) into kernel state and
// back. The state manager knows which object needs which and in what order things happen; a driver knows how
// one object comes and goes. It is one folder and one line in package builtin.
package driver

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/extent"
	"github.com/kraken-hpc/imageapi/models"
)

// Class is one of the three sorts of objects of the API.
type Class string

// The classes of objects.
const (
	Attach    Class = "attach"    // makes a block device
	Mount     Class = "mount"     // makes a tree of files
	Container Class = "container" // makes processes
)

// Object carries an API object of any class: exactly one field is set.
type Object struct {
	Attach    *models.Attach
	Mount     *models.Mount
	Container *models.Container
}

// Driver plans objects of one kind.
type Driver interface {
	// Class and Kind name the driver. Kind equals the value of the field "kind" in a definition and is
	// empty for containers.
	Class() Class
	Kind() string
	// Plan checks def, fills in its defaults and says what it needs, without touching the kernel. It notes
	// all faults, with paths relative to def (such as "loopback.path"), and returns a nil Unit if there are any.
	// def has passed the validation that is generated from swagger.yaml and must not be changed or kept.
	// Needs that were given by id, by definition or both are returned as they stand in def.
	Plan(def Object, faults *errs.Faults) (Unit, []Need)
}

// Need is an object that a definition needs. Def is its place in the definition: given whole, or by id.
type Need struct {
	Path string // relative to the definition, such as "overlay.lower[2]"
	Def  Object
}

// Unit is one planned object. It never changes once made: what Up brings about is in Status. It is safe for
// concurrent use; the manager calls Up and Down of one Unit one at a time.
//
// A Unit marshals to JSON for the journal, without secrets.
type Unit interface {
	// Up makes the object, or leaves nothing behind and says why not; if it can't undo in time what it has begun, the error has a
	// *Leftovers in its chain. It honours ctx's deadline.
	// The error has a class, the cause in the kernel's own words, and says what to do.
	Up(ctx context.Context, place Placement) (Status, error)
	// Down takes away what Up made. What is already gone counts as taken away. If something else than an
	// object of ours holds it, Down changes nothing and returns an errs.Conflict that names the holders.
	Down(ctx context.Context, place Placement, status Status) error
	// Show writes the sub-object of its kind into out: the definition with its defaults, without secrets, and
	// what status reports. needs are the objects it needs, whole, in the order of Plan's. status is zero before Up
	// has succeeded. What is shared with earlier results of Show must not be changed afterwards.
	Show(out Object, status Status, needs []Object)
}

// Leftovers is the error of an Up of which something is left, or may yet come: the object is kept until its Sweep has taken that away. Only
// a Recoverable may return it.
type Leftovers struct{ Err error }

// Error is what is wrapped.
func (e *Leftovers) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Leftovers) Unwrap() error { return e.Err }

// Still is a Unit of which Show tells the same until an act of ours has changed something, so that it need not be asked each time.
// Other units may tell what changes by itself, such as how full something is or whether a server is there.
type Still interface {
	Unit
	// IsStill tells whether that holds for an object that is as status reports.
	IsStill(status Status) bool
}

// Changing is a Unit of which Show tells something that changes by itself, now and then, and that clients are to hear of.
type Changing interface {
	Unit
	// Changes is what that is now, as a word. It waits for nothing.
	Changes(status Status) string
}

// Spacious is a mount with a layer that can become full.
type Spacious interface {
	Unit
	// Space is how large that is and how much of it is used, in bytes, or nil. It waits for nothing.
	Space(status Status) (limit, used *int64)
}

// Forcer is a Unit that can be taken down even if that loses data, when its client says so.
type Forcer interface {
	Unit
	// ForceDown is Down without regard to what is not saved. If anything may be lost by it, warning says what, in a
	// sentence that begins with the object.
	ForceDown(ctx context.Context, place Placement, status Status) (warning string, err error)
}

// Inspector is a Unit that can tell whether its object is still what Up has made it, although somebody else may have changed that.
type Inspector interface {
	Unit
	// Inspect looks at the object. It changes nothing in the kernel and waits for nothing: for what may wait, only mounts is looked
	// at, which was read after the object had come up. If the kernel's side of it is not what it was, the error says what has become
	// of it. It may be called while Down is: what it says then is not used.
	Inspect(place Placement, status Status, mounts *mounttable.Table) error
}

// Reviver is a Unit that can make its file system writable again after a container has remounted it read-only, as an image does that powers
// off. It fails where the kernel has made it read-only, after errors.
type Reviver interface {
	Unit
	Revive(ctx context.Context, status Status) error
}

// FatallyCorrupted is a Unit that can end the containers that stand on it.
type FatallyCorrupted interface {
	Unit
	// Fatal tells of an object that is broken whether no container may go on that stands on it. It waits for nothing.
	Fatal(status Status) bool
}

// Verified is a Unit of which it takes more to tell whether it is verified than what it stands on. All others are if what is below them is.
type Verified interface {
	Unit
	// Verified tells whether all that the object's definition brings into it is checked against a hash in a definition. below tells
	// whether it stands on something, and only on what is verified.
	Verified(below bool) bool
}

// Restorer is a Driver whose objects a later daemon recovers from an earlier one that ended or was killed.
type Restorer interface {
	Driver
	// Restore makes a Unit of what one marshalled itself to. The error says why it can't, as when a later version wrote it.
	Restore(unit json.RawMessage) (Recoverable, error)
}

// Recoverable is a Unit that a later daemon can recover.
type Recoverable interface {
	Unit
	// Recover looks whether what status reports is there as the earlier daemon made it, and makes it this one's own. It
	// changes nothing in the kernel, never waits for a server, and is called once, for what the object needs first. If the kernel's
	// side of it is not what it was, the error says what has become of it; Down must then still be able to take away the rest.
	Recover(ctx context.Context, place Placement, status Status) error
	// Sweep takes away whatever an Up has left that was cut off at any point, before it returned. That there is nothing is
	// no error. It is else as Down.
	Sweep(ctx context.Context, place Placement) error
}

// Placement is where a Unit's Up happens: its identity and what it stands on.
type Placement struct {
	ID    int64    // the object's id: names its directories and cgroup
	Needs []Status // what it needs, in the order of Plan's needs
	// Warn is told of what a Down could not save, in a sentence that begins with the object. It may be nil.
	Warn func(text string)
	// Mounts is what was mounted when a recovery began, or nil. Recover reads it by Table.
	Mounts *mounttable.Table
}

// Table returns the mount table for Recover. It is read only once in a recovery: reading it costs as much as all mounts together.
func (s Placement) Table() (*mounttable.Table, error) {
	if s.Mounts != nil {
		return s.Mounts, nil
	}
	return mounttable.Read()
}

// Lost has the client told that data was lost by a Down that has else done its work.
func (s Placement) Lost(format string, args ...any) {
	if s.Warn != nil {
		s.Warn(fmt.Sprintf(format, args...))
	}
}

// Status is what a driver reports of an object that is up, as data: it is written to the journal and never changed.
type Status struct {
	Device *Device         `json:"device,omitempty"` // of an attach
	Tree   *Tree           `json:"tree,omitempty"`   // of a mount
	Notes  json.RawMessage `json:"notes,omitempty"`  // what the driver itself needs for Down and Show
	// Warnings are told to whoever creates the object: what was asked for and has no effect, or may not do well, in whole sentences
	// or clauses that name the field, with a path relative to the definition.
	Warnings []string `json:"warnings,omitempty"`
}

// Device is a block device that an attach driver made or found.
type Device struct {
	Path       string      `json:"path"`          // in /dev
	Number     uint64      `json:"number"`        // st_rdev
	Sequence   uint64      `json:"seq,omitempty"` // /sys/block/*/diskseq (Linux 5.15): no two devices share one
	ReadOnly   bool        `json:"ro,omitempty"`
	Remote     bool        `json:"remote,omitempty"` // as in Tree
	Partitions []Partition `json:"partitions,omitempty"`
	// Content is what the device will show, as far as a preview knows it. Of a device that is there, ask package claims.
	Content []extent.Extent `json:"-"`
	// Fail is a file in sysfs: to write 1 to it takes the device away, whoever uses it, and has all its I/O fail, what waits
	// included. Empty: the kernel can't do that.
	Fail string `json:"fail,omitempty"`
}

// Partition is a part of a Device with a device node of its own.
type Partition struct {
	Index  int    `json:"index"` // as in the partition table, from 1
	Path   string `json:"path"`
	Number uint64 `json:"number"` // st_rdev
	Start  int64  `json:"start"`  // in bytes
	Size   int64  `json:"size"`   // in bytes
}

// Tree is a file system or a part of one, mounted.
type Tree struct {
	Path     string `json:"path"`            // the mountpoint
	ReadOnly bool   `json:"ro,omitempty"`    // no write through this mount can succeed
	Depth    int    `json:"depth,omitempty"` // how many overlays are stacked in it; the kernel allows two
	// Remote: a server, or what stands on one, has to answer for what is in it. Whatever may wait for that happens in
	// a helper process (internal/sys/helper), never in a thread of the daemon.
	Remote bool `json:"remote,omitempty"`
}
