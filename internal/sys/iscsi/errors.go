package iscsi

import (
	"errors"
	"fmt"
)

// Class is the class of an error: it tells who can mend the fault.
type Class string

// The classes. An error without one is a fault of this package or of the kernel.
const (
	Remote      Class = "remote"      // the target or the network refuses
	Deadline    Class = "deadline"    // the target does not answer in time
	Busy        Class = "busy"        // other users of the disk, whom the error names
	Conflict    Class = "conflict"    // another program has the session, or changed it
	Invalid     Class = "invalid"     // a setting that the kernel does not accept
	Unsupported Class = "unsupported" // the kernel has no initiator
)

// Error is an error with a class.
type Error struct {
	class Class
	err   error
}

// Error returns the text of the cause.
func (e *Error) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.err }

// ErrorClass returns the name of the class. Errors of other packages have a class if they have this method, too.
func (e *Error) ErrorClass() string { return string(e.class) }

// ClassOf returns the class of the outermost error in a chain that has one, or "".
func ClassOf(err error) Class {
	if e, ok := errors.AsType[interface {
		error
		ErrorClass() string
	}](err); ok {
		return Class(e.ErrorClass())
	}
	return ""
}

func fail(c Class, format string, args ...any) error {
	return &Error{c, fmt.Errorf(format, args...)}
}
