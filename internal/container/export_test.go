package container

import (
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// Functions of this package, for tests.
var (
	Effective    = effective
	SignalNumber = signalNumber
	Capability   = capability
	RlimitNumber = rlimitNumber
)

// ConfigOf is how a container with an id is run on a server with a stop timeout of 7 s, for tests.
func ConfigOf(u driver.Unit, id int64) wire.Config {
	planned := *u.(*unit)
	planned.driver = &Driver{opt: Options{StopTimeout: 7 * time.Second}}
	return planned.config(id)
}

// Words is split, for tests.
func Words(command string) (words []string, faults errs.Faults) {
	words = split(command, &faults)
	return words, faults
}

// PretendPID makes a process take another number for that of its first process, until undo.
func PretendPID(p driver.Process, pid int) (undo func()) {
	was := p.(*process).pid
	p.(*process).pid = pid
	return func() { p.(*process).pid = was }
}
