package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

func (d *Driver) logDir() string { return filepath.Join(d.opt.RunDir, "logs") }

// logName is the file in logDir that the output of a container goes to.
func logName(id int64) string { return strconv.FormatInt(id, 10) + ".log" }

// logPath is where the output of a container goes.
func (d *Driver) logPath(id int64) string { return filepath.Join(d.logDir(), logName(id)) }

// createLog makes an empty log in place of whatever has that name.
func (d *Driver) createLog(id int64) error {
	if err := d.removeLog(id); err != nil {
		return err
	}
	err := d.opt.Failpoint.Do("log create", func() error {
		f, err := os.OpenFile(d.logPath(id), os.O_WRONLY|os.O_CREATE|os.O_EXCL, wire.LogOpen)
		if err != nil {
			return err
		}
		return f.Close()
	})
	if err != nil {
		return fmt.Errorf("create log: %w", err)
	}
	return nil
}

// removeLog removes all that package wire says of a log, and what a supervisor that was killed may have left of the next part.
// The part that is being written goes last: readers of the others learn from it that more has gone than they have read.
func (d *Driver) removeLog(id int64) error {
	path := d.logPath(id)
	err := d.opt.Failpoint.Do("log remove", func() error {
		for _, suffix := range []string{wire.LogNext + wire.LogIndex, wire.LogNext, wire.LogOlder + wire.LogIndex, wire.LogOlder, wire.LogIndex, ""} {
			if err := remove(path + suffix); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove log: %w", err)
	}
	return nil
}

// remove removes a file. That there is none is no error.
func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
