package secretfile

import (
	"encoding/json"
	"errors"

	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
)

// Kept keeps the secrets of objects for a later daemon, beside the mountpoints: in memory, for root alone, in no mount namespace but the
// daemon's, and nothing binds it (ADR 0014).
type Kept struct{ Dir *mountdir.Dir }

const word = "secret"

// Keep keeps the secrets of an object until Forget, or nothing.
func (k Kept) Keep(id int64, secrets any) error {
	data, err := json.Marshal(secrets)
	if err != nil {
		return err
	}
	if err := k.Dir.Aside(word).Keep(id, data); err != nil {
		return errors.Join(err, k.Forget(id))
	}
	return nil
}

// Find reads the secrets of an object.
func (k Kept) Find(id int64, secrets any) error {
	data, err := k.Dir.Aside(word).Kept(id)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, secrets)
}

// Forget removes the secrets of an object. That none are kept is no error.
func (k Kept) Forget(id int64) error {
	if k.Dir == nil {
		return nil
	}
	return k.Dir.Aside(word).Forget(id)
}
