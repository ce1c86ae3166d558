package api

import (
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/restapi/operations/containers"
)

// POST /container/exec
func (a *api) execInContainer(p containers.ExecInContainerParams) (containers.ExecInContainerResponder, error) {
	id, err := target{class: driver.Container, id: p.ID, name: p.Name}.find(a.manager.Snapshot())
	if err != nil {
		return nil, err
	}
	about(p.HTTPRequest, driver.Container, id)
	command := commandOf(p.Command)
	outlast(p.HTTPRequest, max(command.Timeout, 0)+time.Minute)
	out, err := a.manager.Exec(p.HTTPRequest.Context(), id, command)
	if err != nil {
		return nil, err
	}
	return containers.NewExecInContainerOK().WithPayload(resultOf(out)), nil
}

func commandOf(c *models.ContainerCommand) driver.Command {
	const longest = 1 << 31 // a number of seconds that is too large in any case
	return driver.Command{
		Args: c.Args, Env: c.Env, User: c.User, WorkingDir: c.WorkingDir,
		Timeout: time.Duration(min(max(c.Timeout, -longest), longest)) * time.Second,
	}
}

func resultOf(o driver.Output) *models.ContainerResult {
	r := &models.ContainerResult{Signal: int64(o.Signal), Stdout: text(o.Stdout), Stderr: text(o.Stderr), Truncated: o.Truncated, TimedOut: o.TimedOut}
	if o.Signal == 0 {
		code := int64(o.Code)
		r.ExitCode = &code
	}
	return r
}

// text makes a string of what a program wrote: JSON holds nothing but UTF-8.
func text(b []byte) string { return strings.ToValidUTF8(string(b), string(utf8.RuneError)) }

// outlast gives the answer to r more time than the server gives others.
func outlast(r *http.Request, d time.Duration) {
	if e := exchangeOf(r); e != nil {
		_ = e.control.SetWriteDeadline(time.Now().Add(d)) // what has no deadlines needs none
	}
}
