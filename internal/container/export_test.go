package container

import "github.com/kraken-hpc/imageapi/internal/errs"

// Effective is effective, for tests.
var Effective = effective

// Words is split, for tests.
func Words(command string) (words []string, faults errs.Faults) {
	words = split(command, &faults)
	return words, faults
}
