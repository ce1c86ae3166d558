package api

import (
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-openapi/runtime/middleware"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/restapi/operations/containers"
)

// POST /container/exec
func (a *api) execInContainer(p containers.ExecInContainerParams) (middleware.Responder, error) {
	v, err := a.container(p.HTTPRequest, p.ID, p.Name)
	if err != nil {
		return nil, err
	}
	command, err := commandOf(p.Command)
	if err != nil {
		return nil, err
	}
	outlast(p.HTTPRequest, max(command.Timeout, 0)+time.Minute)
	out, err := a.Manager.Exec(p.HTTPRequest.Context(), v.ID, command)
	return reply(http.StatusOK, resultOf(out), err)
}

func commandOf(c *models.ContainerCommand) (driver.Command, error) {
	const longest = 1 << 31 // a number of seconds that is too large in any case
	if c.Stdin != "" && c.StdinBase64 != nil {
		return driver.Command{}, errs.New(errs.Invalid, "stdin, stdin_base64: set only one of them")
	}
	input := []byte(c.StdinBase64)
	if c.Stdin != "" {
		input = []byte(c.Stdin)
	}
	return driver.Command{
		Args: c.Args, Env: c.Env, User: c.User, WorkingDir: c.WorkingDir,
		Timeout: time.Duration(min(max(c.Timeout, -longest), longest)) * time.Second,
		Input:   input,
	}, nil
}

func resultOf(o driver.Output) *models.ContainerResult {
	r := &models.ContainerResult{Signal: int64(o.Signal), Stdout: text(o.Stdout), Stderr: text(o.Stderr), Truncated: o.Truncated, TimedOut: o.TimedOut}
	if !utf8.Valid(o.Stdout) {
		r.StdoutBase64 = o.Stdout
	}
	if !utf8.Valid(o.Stderr) {
		r.StderrBase64 = o.Stderr
	}
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
	_ = exchangeOf(r).control.SetWriteDeadline(time.Now().Add(d)) // what has no deadlines needs none
}
