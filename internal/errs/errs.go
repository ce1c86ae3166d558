// Package errs holds the classes of errors. A class says who can correct the
// fault; the table in internal/api turns it into an HTTP status. Nothing below internal/api knows HTTP.
package errs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
)

// Class is what kind of fault an error is. The zero value is Internal: an error without a class is a fault of ours.
type Class uint8

// The classes. An error has exactly one: that of the outermost *Error in its chain.
const (
	Internal    Class = iota // a fault of this software
	Malformed                // the request can't be read
	Invalid                  // the request can be read but asks for something that can't be
	NotFound                 // a named object does not exist
	Conflict                 // in use, busy, pending, or the name is taken
	Unsupported              // the kernel or this version lacks it
	Remote                   // a storage server refused
	Deadline                 // it took too long

	Unknown      // the request has a parameter that does not exist
	Busy         // a Conflict: something on the node uses the object
	InUse        // a Conflict: another object depends on the object
	NameTaken    // a Conflict: another container has the name
	Precondition // the object changed since the client read it
	RolledBack   // a replace failed, and the old container runs again
	OutOfSpace   // a file system, the memory or the cache is full
	Exhausted    // the server or the node has no free file descriptors
)

// general returns the class that c is a case of, or c itself.
func (c Class) general() Class {
	switch c {
	case Busy, InUse, NameTaken:
		return Conflict
	}
	return c
}

var names = []string{
	"internal", "malformed", "invalid", "not-found", "conflict", "unsupported", "remote", "deadline",
	"unknown", "busy", "in-use", "name-taken", "precondition", "rolled-back", "out-of-space", "exhausted",
}

// String returns the class's name as it stands in logs.
func (c Class) String() string {
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// Error is an error with a class.
type Error struct {
	Class Class
	Err   error
}

// Error returns the text of what is wrapped; the class is not part of it.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New makes an error of class c. Its format is that of fmt.Errorf, %w included.
func New(c Class, format string, args ...any) error {
	return &Error{Class: c, Err: fmt.Errorf(format, args...)}
}

// ErrorClass returns the name of the class.
func (e *Error) ErrorClass() string { return e.Class.String() }

// Classified is an error with the name of a class: an *Error, or one of a package that does not know this one.
type Classified interface {
	error
	ErrorClass() string
}

// ClassOf returns the class of err: that of the outermost Classified in its chain, else Internal. An error of class Internal
// is OutOfSpace or Exhausted if that is what the kernel said, wherever it came from.
func ClassOf(err error) Class {
	class := Internal
	if e, ok := errors.AsType[Classified](err); ok {
		class = Class(max(0, slices.Index(names, e.ErrorClass())))
	}
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return Exhausted // it is never the fault of a request or a storage server
	case class == Internal && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.ENOMEM)):
		return OutOfSpace
	}
	return class
}

// Is reports whether err is of class c, or of a class that is a case of c.
func Is(err error, c Class) bool {
	if err == nil {
		return false
	}
	class := ClassOf(err)
	return class == c || class.general() == c
}

// Located is an error about one place in a definition.
type Located struct {
	Path string // relative to the definition, as in "overlay.lower[0]"
	Err  error
}

// At makes an error about the place path.
func At(path string, err error) error { return &Located{Path: path, Err: err} }

// Error is the place and what is wrong there.
func (e *Located) Error() string { return e.Path + ": " + e.Err.Error() }

// Unwrap returns what is wrong.
func (e *Located) Unwrap() error { return e.Err }

// Fault is one thing that is wrong with a request.
type Fault struct {
	Path string // where in the body, as in "mount.overlay.lower[0].kind"; empty for the whole
	Text string // what is wrong, and what would be right
}

// Faults collects all that is wrong with a request, so that the client can correct everything at once.
type Faults []Fault

// Add notes a fault at path.
func (f *Faults) Add(path, format string, args ...any) {
	*f = append(*f, Fault{Path: path, Text: fmt.Sprintf(format, args...)})
}

// Err returns nil if there is no fault, or one error of class Invalid that names them all.
func (f Faults) Err() error { return f.Of(Invalid) }

// Of is Err with another class.
func (f Faults) Of(c Class) error {
	if len(f) == 0 {
		return nil
	}
	return &Error{Class: c, Err: f}
}

// Error names all faults in one line.
func (f Faults) Error() string {
	texts := make([]string, len(f))
	for i, fault := range f {
		texts[i] = fault.Text
		if fault.Path != "" {
			texts[i] = fault.Path + ": " + fault.Text
		}
	}
	return strings.Join(texts, "; ")
}
