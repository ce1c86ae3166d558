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
	// all faults, with paths relative to def (such as "loopback.path"). If there are any, the Unit is not used.
	// def has passed the validation that is generated from swagger.yaml and must not be changed or kept.
	// Needs that were given by id, by definition or both are returned as they stand in def.
	Plan(def Object, faults *errs.Faults) (Unit, []Need)
	// Restore returns the Unit of an object of an earlier daemon from its record in the journal. The error contains the cause, such as a
	// record of a later version.
	Restore(unit json.RawMessage) (Unit, error)
	// Survey reports the features that the kernel lacks for the objects of the driver. It changes nothing and loads no kernel module.
	Survey(ctx context.Context) Survey
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
	// Check previews Up: it fails as Up would before it acts, by the same code. It changes nothing, loads no kernel module and honours
	// ctx's deadline. A need that does not exist yet is a preview, too; then the placement's ID is 0. With an error the Preview contains
	// at least Does.
	Check(ctx context.Context, place Placement) (Preview, error)
	// Down removes what Up made. What is already gone counts as removed. If something else than an
	// object of ours holds it, Down changes nothing and returns an errs.Conflict that names the holders.
	Down(ctx context.Context, place Placement, status Status) error
	// Recover checks that the object of an earlier daemon is unchanged since its Up, and makes it this daemon's own. It changes nothing
	// in the kernel, never waits for a server, and is called once, for the dependencies first. If the object has changed, the error
	// describes the change; Down must still be able to remove the rest.
	Recover(ctx context.Context, place Placement, status Status) error
	// Sweep removes the leftovers of an Up that was interrupted at any point, before it returned. That none exist is no error.
	// Otherwise it is like Down.
	Sweep(ctx context.Context, place Placement) error
	// Inspect checks that the object is unchanged since its Up, although other programs may have changed it. It changes nothing in the
	// kernel and waits for nothing: for what may wait, it reads only mounts, which was read after the object had come up. If the object
	// has changed, the error describes the change. It may run at the same time as Down: its result is then not used.
	Inspect(place Placement, status Status, mounts *mounttable.Table) error
	// Show writes the sub-object of its kind into out: the definition with its defaults, without secrets, and
	// what status reports; of an attachment or a mount also its source. needs are the objects it needs, whole, in the order of Plan's.
	// status is zero before Up has succeeded. What is shared with earlier results of Show must not be changed afterwards.
	Show(out Object, status Status, needs []Object)
	// IsStill reports whether Show writes the same for an object with this status until an act of ours changes it, so that it need not
	// be called each time. Other units show values that change by themselves, such as how full a file system is.
	IsStill(status Status) bool
}

// Leftovers is the error of an Up that has left something behind, or may yet: the object is kept until its Sweep has removed that.
type Leftovers struct{ Err error }

// Error is what is wrapped.
func (e *Leftovers) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Leftovers) Unwrap() error { return e.Err }

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
	// Verity is where the image itself has a hash tree, if it says so.
	Verity *Verity `json:"verity,omitempty"`
}

// Verity is a hash tree on the device that it is of.
type Verity struct {
	RootHash   string `json:"root_hash"` // hexadecimal digits, in lower case
	HashOffset int64  `json:"hash_offset"`
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
	// a helper process (internal/proc/oneshot), never in a thread of the daemon.
	Remote bool `json:"remote,omitempty"`
}
