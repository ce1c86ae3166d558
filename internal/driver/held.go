package driver

import (
	"errors"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// Held is the error of an Up or a Check that another object prevents, because only one of the two can have what both claim. It can come up
// once that object is down.
type Held struct {
	By     int64  // the object, or 0
	Device string // the device file of the object, if By is 0
	Err    error
}

// HeldBy returns a Held for an object, with the place that err has in the definition.
func HeldBy(id int64, err error) error {
	if at, ok := errors.AsType[*errs.Located](err); ok {
		return errs.At(at.Path, &Held{By: id, Err: at.Err})
	}
	return &Held{By: id, Err: err}
}

// Error returns the text of the wrapped error.
func (h *Held) Error() string { return h.Err.Error() }

// Unwrap returns the wrapped error.
func (h *Held) Unwrap() error { return h.Err }
