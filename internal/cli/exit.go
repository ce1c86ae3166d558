package cli

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/kraken-hpc/imageapi/models"
)

// The exit statuses. That of exec is its command's, and execFailed if there is none.
const (
	exitOK          = 0
	exitRefused     = 1 // the server refused or failed, or the output can't be written
	exitUsage       = 2 // the command line or the definition is wrong
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
	switch r.Code() {
	case 404:
		return exitNotFound
	case 504:
		return exitTimeUp
	}
	return exitRefused
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

// nextFault is the beginning of a further fault in the message of a 422: a path in the request.
var nextFault = regexp.MustCompile(`; ((?:container|mount|attach)[\w.\[\]]*|query parameter \w+): `)

// faultsOf returns what a refusal says. It speaks of the interface's parameters, and users of this program have its options.
func faultsOf(r refusal) []string {
	if r.GetPayload() == nil || r.GetPayload().Message == nil {
		return []string{fmt.Sprintf("the server answers %d without a message", r.Code())}
	}
	text := strings.ReplaceAll(*r.GetPayload().Message, "force=true", "force=true (imageapi remove --force)")
	if r.Code() != 422 {
		return []string{text}
	}
	return strings.Split(nextFault.ReplaceAllString(text, "\n$1: "), "\n")
}
