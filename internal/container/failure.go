package container

import (
	"debug/elf"
	"strconv"
	"strings"
	"syscall"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// texts are those of failures that the image or the definition causes: the first argument is the path, the second the detail.
var texts = map[wire.Reason]string{
	wire.MissingDirs:    "start container: the root is read-only and lacks the directories %[1]s: make them in the image, or put an overlay above it",
	wire.NotDirectory:   "start container: %[1]s in the root is not a directory (a link is not followed): make it one",
	wire.NotFound:       "execute %[1]s: no such file in the container",
	wire.NotInPath:      "execute %[1]s: no such program in the container's PATH (%[2]s): give its path",
	wire.IsDirectory:    "execute %[1]s: is a directory",
	wire.NotRegular:     "execute %[1]s: is a device, pipe or socket",
	wire.NotExecutable:  "execute %[1]s: not executable; set the mode bit x",
	wire.NoInterpreter:  "execute %[1]s: its interpreter %[2]s is not in the container",
	wire.BadInterpreter: "execute %[1]s: its interpreter %[2]s cannot be executed",
	wire.WrongMachine:   "execute %[1]s: built for another architecture (%[2]s)",
	wire.BadFormat:      "execute %[1]s: neither a program nor a script that begins with #!",
}

// explain makes an error of a start that failed, of a container or of a command in one.
func explain(f *wire.Failure) error {
	path, detail := f.Path, f.Detail
	switch f.Reason {
	case wire.MissingDirs:
		path = strings.ReplaceAll(path, " ", ", ")
	case wire.WrongMachine:
		detail = machine(detail)
	case wire.Unfit:
		return explainUnfit(f)
	case wire.Died:
		return errs.New(errs.Internal, "%s: the process died %s", f.Act, detail)
	}
	if text, ok := texts[f.Reason]; ok {
		return errs.New(errs.Invalid, text, path, detail)
	}
	return explainSyscall(f)
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

// explainUnfit makes an error of a request of a field that the container cannot have.
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
