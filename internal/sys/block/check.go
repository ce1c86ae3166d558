package block

import (
	"errors"
	"io/fs"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// Check makes sure that the device of a number, or the one it is a partition of, is still the one that had the sequence number and
// has a medium. It looks into sysfs alone and so opens nothing and waits for nothing. A sequence of 0 is not compared.
func Check(number, sequence uint64) error {
	size, err := Attribute(Sysfs(number), "size")
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.Conflict, "the device is gone; delete the attachment and create it again")
	}
	if err != nil {
		return err
	}
	if size == 0 {
		return errs.New(errs.Conflict, "the device has lost its backing; delete the attachment and create it again")
	}
	if now := sequenceOf(number); sequence != 0 && now != 0 && now != sequence {
		return errs.New(errs.Conflict, "another device has taken the place of the attached one; delete the attachment and create it again")
	}
	return nil
}

// sequenceOf is Info.Sequence by sysfs.
func sequenceOf(number uint64) uint64 {
	dir := Sysfs(number)
	n, err := Attribute(dir, "diskseq")
	if err != nil {
		n, _ = Attribute(dir+"/..", "diskseq") // the directory of a partition is in that of its disk
	}
	return uint64(n)
}
