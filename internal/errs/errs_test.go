package errs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"
)

func TestClassOf(t *testing.T) {
	t.Parallel()
	inner := New(NotFound, "open x: %w", io.EOF)
	for name, c := range map[string]struct {
		err  error
		want Class
	}{
		"plain":     {io.EOF, Internal},
		"classed":   {inner, NotFound},
		"wrapped":   {fmt.Errorf("mount: %w", inner), NotFound},
		"reclassed": {New(Remote, "attach: %w", inner), Remote},
		"located":   {At("a.b", inner), NotFound},
		"joined":    {errors.Join(io.EOF, inner), NotFound},

		"descriptors":             {usedUp(syscall.EMFILE), Exhausted},
		"descriptors of the node": {usedUp(syscall.ENFILE), Exhausted},
		"descriptors, elsewhere":  {New(Remote, "dial: %w", usedUp(syscall.EMFILE)), Exhausted},
		"space":                   {usedUp(syscall.ENOSPC), OutOfSpace},
		"quota":                   {New(Internal, "write: %w", usedUp(syscall.EDQUOT)), OutOfSpace},
		"memory":                  {usedUp(syscall.ENOMEM), OutOfSpace},
		"space, of a value":       {New(Invalid, "set: %w", usedUp(syscall.ENOSPC)), Invalid},
	} {
		if got := ClassOf(c.err); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		if !errors.Is(c.err, io.EOF) {
			t.Errorf("%s: the cause is lost", name)
		}
	}
	if Is(nil, Internal) {
		t.Error("no error has a class")
	}
}

func usedUp(errno syscall.Errno) error {
	return errors.Join(io.EOF, &os.PathError{Op: "open", Path: "x", Err: errno})
}

func TestFaults(t *testing.T) {
	t.Parallel()
	var f Faults
	if f.Err() != nil {
		t.Error("no faults are an error")
	}
	f.Add("a[0].b", "is %d", 3)
	f.Add("", "is empty")
	if err := f.Err(); !Is(err, Invalid) || err.Error() != "a[0].b: is 3; is empty" {
		t.Errorf("%v", err)
	}
}
