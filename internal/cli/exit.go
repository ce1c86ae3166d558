package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kraken-hpc/imageapi/models"
)

// The exit statuses. That of exec is its command's, and execFailed if there is none.
const (
	exitOK          = 0
	exitRefused     = 1 // the server refused or failed, or the output can't be written
	exitUsage       = 2 // the command line or the definition is wrong, whoever finds it
	exitNotFound    = 3
	exitUnreachable = 4 // no answer of the server
	exitTimeUp      = 5
	execTimedOut    = 124 // as timeout(1)
	execFailed      = 125 // as timeout(1) and env(1)
	exitInterrupted = 130 // as a shell tells SIGINT
	exitSignal      = 128 // and the number of the signal
)

// failure is an error with an exit status.
type failure struct {
	status int
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func fail(status int, format string, args ...any) error {
	return &failure{status, fmt.Errorf(format, args...)}
}

func usage(format string, args ...any) error { return fail(exitUsage, format, args...) }

// ended is the end of a command with a status of its own and nothing to tell.
type ended int

func (e ended) Error() string { return "" }

// refusal is an error answer; the generated client has a type of it for each operation.
type refusal interface {
	error
	Code() int
	GetPayload() *models.Error
}

// statusOf returns the exit status for an error; of several the first counts.
func statusOf(err error) int {
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		return statusOf(all.Unwrap()[0])
	}
	if e, ok := errors.AsType[ended](err); ok {
		return int(e)
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return f.status
	}
	if r, ok := errors.AsType[refusal](err); ok {
		return statusOfRefusal(r)
	}
	if errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	return exitRefused
}

func statusOfRefusal(r refusal) int {
	switch {
	case len(faultsIn(r)) > 0:
		return exitUsage
	case r.Code() == 404:
		return exitNotFound
	case r.Code() == 504:
		return exitTimeUp
	}
	return exitRefused
}

// faultsIn returns the faults of a request that is wrong. Other errors may name a place, too, but their message says more.
func faultsIn(r refusal) []*models.Fault {
	p := r.GetPayload()
	if p == nil || p.Type != "invalid" && p.Type != "unknown-field" {
		return nil
	}
	if len(p.Errors) == 0 {
		return []*models.Fault{{Message: text(p.Message)}}
	}
	return p.Errors
}

// report writes an error for people, a line for each fault.
func (a *app) report(err error) {
	for _, line := range linesOf(err) {
		a.warn(line)
	}
}

// linesOf returns what there is to say about an error.
func linesOf(err error) []string {
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		var lines []string
		for _, one := range all.Unwrap() {
			lines = append(lines, linesOf(one)...)
		}
		return lines
	}
	if _, ok := errors.AsType[ended](err); ok {
		return nil
	}
	if r, ok := errors.AsType[refusal](err); ok {
		return faultsOf(r)
	}
	if errors.Is(err, context.Canceled) {
		return []string{"interrupted"}
	}
	return []string{err.Error()}
}

// faultsOf returns the lines of a refusal. The server names the parameters of the interface, and users of this program have its options.
func faultsOf(r refusal) (lines []string) {
	p := r.GetPayload()
	if p == nil || p.Message == nil {
		return []string{fmt.Sprintf("the server returns %d without a message", r.Code())}
	}
	for _, f := range faultsIn(r) {
		lines = append(lines, strings.TrimPrefix(f.Path+": "+f.Message, ": "))
	}
	if len(lines) > 0 {
		return lines
	}
	return []string{strings.ReplaceAll(*p.Message, "force=true", "force=true (imageapi remove --force)")}
}
