package web

import "github.com/kraken-hpc/imageapi/internal/driver"

// Abandon lets go of the keeper of an attachment, as a daemon does that is killed.
func Abandon(u driver.Unit, id int64) { u.(*unit).driver.service(id).end() }
