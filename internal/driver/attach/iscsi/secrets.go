package iscsi

import (
	"encoding/json"
	"errors"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/iscsi"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
)

// secrets keeps those of the attachments for a later daemon, which needs them to log in again when a connection is lost. They lie
// in the directory of mountpoints: in memory, for root alone, in no mount namespace but the daemon's, and nothing binds it.
type secrets struct{ dir *mountdir.Dir }

// kept is what the file of an attachment holds.
type kept struct {
	Secret       string `json:"secret"`
	TargetSecret string `json:"target_secret,omitempty"`
}

// keep keeps what has a secret.
func (s secrets) keep(id int64, a iscsi.Auth) error {
	if a.Name == "" {
		return nil
	}
	data, err := json.Marshal(kept{a.Secret, a.TargetSecret})
	if err != nil {
		return err
	}
	if err := s.dir.Aside(secretWord).Keep(id, data); err != nil {
		return errors.Join(err, s.forget(id))
	}
	return nil
}

// find completes names with their secrets. With an error they are not there any more.
func (s secrets) find(id int64, name, targetName string) (iscsi.Auth, error) {
	a := iscsi.Auth{Name: name, TargetName: targetName}
	if name == "" {
		return a, nil
	}
	data, err := s.dir.Aside(secretWord).Kept(id)
	var k kept
	if err == nil {
		err = json.Unmarshal(data, &k)
	}
	a.Secret, a.TargetSecret = k.Secret, k.TargetSecret
	if !a.Known() {
		err = errors.Join(err, errors.New("the secret is empty"))
	}
	if err != nil {
		return a, errs.New(errs.Conflict, "the CHAP secret is lost: I/O continues until the connection is lost, and then fails forever; delete the attachment and create it again: %w", err)
	}
	return a, nil
}

// forget removes them. That there are none is fine.
func (s secrets) forget(id int64) error {
	if s.dir == nil {
		return nil
	}
	return s.dir.Aside(secretWord).Forget(id)
}

const secretWord = "secret"
