package driver

import (
	"encoding/json"
	"fmt"
)

// NotesOf returns the notes of a driver in a status. Before Up there are none, which is an error, too.
func NotesOf[T any](status Status) (notes T, err error) {
	if err = json.Unmarshal(status.Notes, &notes); err != nil {
		err = fmt.Errorf("read the notes of the driver: %w", err)
	}
	return notes, err
}

// Restored reads the record of a unit, for Driver.Restore.
func Restored(u Unit, record json.RawMessage) (Unit, error) { return u, json.Unmarshal(record, u) }

// Value returns what an optional field of a definition points to, or the zero value.
func Value[T any](field *T) (value T) { return ValueOr(field, value) }

// ValueOr returns what an optional field of a definition points to, or its default.
func ValueOr[T any](field *T, otherwise T) T {
	if field == nil {
		return otherwise
	}
	return *field
}
