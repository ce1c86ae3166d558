package container

import (
	"debug/elf"
	"strconv"
	"strings"
	"syscall"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// explain makes an error of a start that failed, of a container or of a command in one.
func explain(f *wire.Failure) error {
	invalid := func(format string, args ...any) error { return errs.New(errs.Invalid, format, args...) }
	switch f.Reason {
	case wire.MissingDirs:
		return invalid("start container: the root is read-only and lacks the directories %s: make them in the image, or put an overlay above it", strings.ReplaceAll(f.Path, " ", ", "))
	case wire.NotDirectory:
		return invalid("start container: %s in the root is not a directory (a link is not followed): make it one", f.Path)
	case wire.NotFound:
		return invalid("execute %s: no such file in the container", f.Path)
	case wire.NotInPath:
		return invalid("execute %s: no such program in the container's PATH (%s): give its path", f.Path, f.Detail)
	case wire.IsDirectory:
		return invalid("execute %s: is a directory", f.Path)
	case wire.NotRegular:
		return invalid("execute %s: is a device, pipe or socket", f.Path)
	case wire.NotExecutable:
		return invalid("execute %s: not executable; set the mode bit x", f.Path)
	case wire.NoInterpreter:
		return invalid("execute %s: its interpreter %s is not in the container", f.Path, f.Detail)
	case wire.BadInterpreter:
		return invalid("execute %s: its interpreter %s cannot be executed", f.Path, f.Detail)
	case wire.WrongMachine:
		return invalid("execute %s: built for another architecture (%s)", f.Path, machine(f.Detail))
	case wire.BadFormat:
		return invalid("execute %s: neither a program nor a script that begins with #!", f.Path)
	case wire.Unfit:
		return explainUnfit(f)
	case wire.Died:
		return errs.New(errs.Internal, "%s: the process died %s", f.Act, f.Detail)
	default:
		return explainSyscall(f)
	}
}

// explainSyscall makes an error of a system call that failed.
func explainSyscall(f *wire.Failure) error {
	class := errs.Internal
	switch f.Errno {
	case syscall.ENOSYS, syscall.ENODEV, syscall.EOPNOTSUPP:
		class = errs.Unsupported
	}
	if f.Act == wire.ActExecute {
		class = errs.Invalid
	}
	return errs.New(class, "%s: %w", object(f), f.Errno)
}

// explainUnfit makes an error of what a field asks for and the container can't be given.
func explainUnfit(f *wire.Failure) error {
	err := errs.New(errs.Invalid, "%s: %s", object(f), f.Detail)
	switch {
	case f.Errno != 0 && f.Detail != "":
		err = errs.New(errs.Invalid, "%s: %w: %s", object(f), f.Errno, f.Detail)
	case f.Errno != 0:
		err = errs.New(errs.Invalid, "%s: %w", object(f), f.Errno)
	}
	if f.Field == "" {
		return err
	}
	return errs.At(f.Field, err)
}

// object returns what was done, and to what.
func object(f *wire.Failure) string {
	if f.Path == "" {
		return f.Act
	}
	return f.Act + " " + f.Path
}

// machine returns the name of an ELF machine number.
func machine(number string) string {
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return number
	}
	return strings.ToLower(strings.TrimPrefix(elf.Machine(n).String(), "EM_"))
}
