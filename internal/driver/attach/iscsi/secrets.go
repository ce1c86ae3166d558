package iscsi

import (
	"errors"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/iscsi"
)

// kept are the secrets of an attachment that a later daemon needs to log in again when a connection is lost.
type kept struct {
	Secret       string `json:"secret"`
	TargetSecret string `json:"target_secret,omitempty"`
}

// keepSecrets keeps the secrets of an attachment that has some.
func (u *unit) keepSecrets(id int64) error {
	if u.Auth.Name == "" {
		return nil
	}
	return u.driver.secrets.Keep(id, kept{u.Auth.Secret, u.Auth.TargetSecret})
}

// findAuth completes the names of the definition with the secrets that an earlier daemon kept. With an error they are lost.
func (u *unit) findAuth(id int64) (iscsi.Auth, error) {
	a := iscsi.Auth{Name: u.Username, TargetName: u.TargetUsername}
	if a.Name == "" {
		return a, nil
	}
	var k kept
	err := u.driver.secrets.Find(id, &k)
	a.Secret, a.TargetSecret = k.Secret, k.TargetSecret
	if !a.Known() {
		err = errors.Join(err, errors.New("the secret is empty"))
	}
	if err != nil {
		return a, errs.New(errs.Conflict, "the CHAP secret is lost: I/O continues until the connection is lost, and then fails forever; delete the attachment and create it again: %w", err)
	}
	return a, nil
}
