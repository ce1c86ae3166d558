package driver

import (
	"context"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

// The interfaces of this file are abilities that only some kinds of objects have. As finds them.

// Changing is a Unit that shows something that changes by itself, now and then, and that clients receive events of.
type Changing interface {
	Unit
	// Changes returns the present value as a word. It waits for nothing.
	Changes(status Status) string
}

// Spacious is a mount with a layer that can become full.
type Spacious interface {
	Unit
	// Space returns the size of the layer and how much of it is used, in bytes, or nil. It waits for nothing.
	Space(status Status) (limit, used *int64)
}

// Forcer is a Unit that can be torn down even if that loses data, at the request of the client.
type Forcer interface {
	Unit
	// ForceDown is Down that discards unwritten data. If data may be lost, the warning is a sentence that begins with the object.
	ForceDown(ctx context.Context, place Placement, status Status) (warning string, err error)
}

// Reviver is a Unit that can make its file system writable again after a container has remounted it read-only, as an image does that powers
// off. It fails where the kernel has made it read-only, after errors.
type Reviver interface {
	Unit
	Revive(ctx context.Context, status Status) error
}

// FatallyCorrupted is a Unit that can end the containers that depend on it.
type FatallyCorrupted interface {
	Unit
	// Fatal reports of a broken object whether no container that depends on it may continue. It waits for nothing.
	Fatal(status Status) bool
}

// Interruptible is a Unit whose I/O can wait for a server.
type Interruptible interface {
	Unit
	// Interrupt makes I/O fail that waits now, and all later I/O. It is called if everything that depends on the object is deleted by force.
	Interrupt(status Status) error
}

// Verified is a Unit that is not simply verified if all its dependencies are.
type Verified interface {
	Unit
	// Verified reports whether all data that the object's definition brings into it is checked against a hash in a definition. below
	// reports whether the object has dependencies, and all of them are verified.
	Verified(below bool) bool
}

// Coverable is a Driver of attachments whose devices verity can cover.
type Coverable interface {
	Driver
	// ReadOnly returns a definition of its kind with the device read-only, where the kind has a field for that. It notes the faults of
	// fields that make no sense then. It changes nothing that def points to.
	ReadOnly(def models.Attach, faults *errs.Faults) models.Attach
}

// Covering is a Unit that adds something to another one, which it contains, as verity does.
type Covering interface {
	Unit
	// Covered returns that unit, and the part of the status that its Up returned.
	Covered(status Status) (Unit, Status)
}

// As returns the unit with the ability T: u, or the unit that it covers, with the status of the unit that it returns. An ability that
// a covering unit lacks is thus never lost; one that is different above the covered unit, the covering unit implements itself.
func As[T Unit](u Unit, status Status) (T, Status, bool) {
	for {
		if able, ok := u.(T); ok {
			return able, status, true
		}
		c, ok := u.(Covering)
		if !ok {
			var none T
			return none, Status{}, false
		}
		u, status = c.Covered(status)
	}
}
