package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	oaerrors "github.com/go-openapi/errors"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

// statusClientGone is the status in the log of a request whose client did not wait for the response.
const statusClientGone = 499

// ErrStopping is the cause to cancel requests with when the daemon ends: they are answered 503.
var ErrStopping error = oaerrors.New(http.StatusServiceUnavailable, "the daemon is shutting down")

// problem is a type of errors, as programs see it. The reference has the same table.
type problem struct {
	slug   string
	status int
	retry  bool // the same request can succeed later
}

// problemOf is the table of errors with a class.
func problemOf(class errs.Class) problem {
	return [...]problem{
		errs.Internal:     {"internal", http.StatusInternalServerError, false},
		errs.Malformed:    {"invalid", http.StatusBadRequest, false},
		errs.Unknown:      {"unknown-field", http.StatusBadRequest, false},
		errs.Invalid:      {"invalid", http.StatusUnprocessableEntity, false},
		errs.NotFound:     {"not-found", http.StatusNotFound, false},
		errs.Conflict:     {"conflict", http.StatusConflict, true},
		errs.Busy:         {"busy", http.StatusConflict, true},
		errs.InUse:        {"in-use", http.StatusConflict, true},
		errs.NameTaken:    {"name-taken", http.StatusConflict, true},
		errs.Precondition: {"precondition-failed", http.StatusPreconditionFailed, false},
		errs.RolledBack:   {"rolled-back", http.StatusUnprocessableEntity, false},
		errs.Unsupported:  {"unsupported", http.StatusNotImplemented, false},
		errs.Remote:       {"remote-refused", http.StatusBadGateway, true},
		errs.Deadline:     {"timeout", http.StatusGatewayTimeout, true},
		errs.OutOfSpace:   {"out-of-space", http.StatusInsufficientStorage, true},
		errs.Exhausted:    {"exhausted", http.StatusServiceUnavailable, true},
	}[class]
}

// problemWith is the type of an error without a class: one that net/http or go-openapi found (404 and 405 for unknown paths and methods,
// 406), or a 403, 408, 413, 415, 429 or 503 of this package.
func problemWith(status int) problem {
	switch status {
	case http.StatusForbidden:
		return problem{"forbidden", status, false}
	case http.StatusNotFound:
		return problemOf(errs.NotFound)
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		return problem{"timeout", status, true}
	case http.StatusTooManyRequests:
		return problem{"too-many-requests", status, true}
	case http.StatusServiceUnavailable:
		return problem{"shutting-down", status, true}
	case http.StatusNotImplemented:
		return problemOf(errs.Unsupported)
	case http.StatusInternalServerError:
		return problemOf(errs.Internal)
	}
	return problem{"invalid", status, false}
}

// sectionOf names the section of the reference with the cause and remedy of the errors with a status. docs/errors.md has a section or
// a row of the same name.
func sectionOf(status int) string {
	names := map[int]string{
		http.StatusBadRequest: "malformed", http.StatusForbidden: "forbidden", http.StatusNotFound: "not-found", http.StatusMethodNotAllowed: "method",
		http.StatusNotAcceptable: "accept", http.StatusRequestTimeout: "too-slow", http.StatusConflict: "conflict",
		http.StatusPreconditionFailed: "precondition", http.StatusRequestEntityTooLarge: "too-large", http.StatusUnsupportedMediaType: "content-type",
		http.StatusUnprocessableEntity: "invalid", http.StatusTooManyRequests: "too-many", http.StatusNotImplemented: "unsupported",
		http.StatusBadGateway: "remote", http.StatusServiceUnavailable: "unavailable", http.StatusGatewayTimeout: "deadline",
		http.StatusInsufficientStorage: "out-of-space",
	}
	if name := names[status]; name != "" {
		return strconv.Itoa(status) + "-" + name
	}
	return "500-internal"
}

// serveError answers r with err. It has the signature that go-openapi wants.
func serveError(w http.ResponseWriter, r *http.Request, err error) {
	answer := explain(r, err)
	e := exchangeOf(r)
	e.failure, e.problem = *answer.Message, answer.Type
	if isUpgrade(r) {
		e.failure = answer.Type // the message can quote the query, which can have secrets
	}
	if notAllowed, ok := errors.AsType[*oaerrors.MethodNotAllowedError](err); ok {
		w.Header().Set("Allow", strings.Join(slices.Sorted(slices.Values(notAllowed.Allowed)), ", "))
	}
	writeError(w, answer)
}

func writeError(w http.ResponseWriter, answer *models.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(int(answer.Code))
	// The only error left is that of a client that is gone.
	_ = jsonProducer().Produce(w, answer)
}

// newError returns an error as it is answered.
func newError(p problem, message string) *models.Error {
	return &models.Error{Code: int64(p.status), Message: &message, See: docsPath + "/errors#" + sectionOf(p.status), Type: p.slug}
}

// maxMessage is how many bytes of a message are sent, and maxFaults of the list of faults. A body of a megabyte can hold a hundred
// thousand of them.
const (
	maxMessage = 4 << 10
	maxUpgrade = 512 // likewise, of a refused upgrade: clients read no more than a KiB of that answer
	maxFaults  = 3 << 10
	cut        = " ... and more"
)

// explain returns the response to err. Its message is never empty.
func explain(r *http.Request, err error) *models.Error {
	if cause := context.Cause(r.Context()); cause != nil && errors.Is(err, context.Canceled) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	all := leaves(err)
	p, longest := problemIn(all), maxMessage
	var texts []string
	var faults []*models.Fault
	for _, one := range all {
		texts = append(texts, one.Error())
		faults = append(faults, faultsAs(faultsIn(one), p)...)
	}
	message := strings.Join(texts, "; ")
	if isUpgrade(r) {
		faults, longest = nil, maxUpgrade
	}
	if body := exchangeOf(r).body; body != nil && p.status == http.StatusUnprocessableEntity && len(body.dropped) > 0 {
		message += "; ignored: " + strings.Join(body.dropped[:min(len(body.dropped), maxNamed)], ", ")
		faults = append(faults, faultsAs(body.unknown, problemOf(errs.Unknown))...)
	}
	switch {
	case message == "":
		message = strings.ToLower(http.StatusText(p.status))
	case len(message) > longest:
		message = strings.ToValidUTF8(message[:longest-len(cut)], "") + cut
	}
	answer := newError(p, message)
	answer.Errors = bounded(faults)
	return answer
}

// leaves returns the errors that err collects.
func leaves(err error) (all []error) {
	collected, ok := errors.AsType[*oaerrors.CompositeError](err)
	switch {
	case err == nil:
	case !ok:
		all = []error{err}
	default:
		for _, one := range collected.Errors {
			all = append(all, leaves(one)...)
		}
	}
	return all
}

// faultsIn returns the places in the request that err names.
func faultsIn(err error) errs.Faults {
	if faults, ok := errors.AsType[errs.Faults](err); ok {
		return faults
	}
	if at, ok := errors.AsType[*errs.Located](err); ok {
		return errs.Faults{{Path: at.Path, Text: at.Err.Error()}}
	}
	if rule, ok := errors.AsType[*oaerrors.Validation](err); ok && rule.Name != "" {
		return errs.Faults{{Path: rule.Name, Text: rule.Error()}}
	}
	return nil
}

func faultsAs(faults errs.Faults, p problem) []*models.Fault {
	list := make([]*models.Fault, len(faults))
	for i, f := range faults {
		list[i] = &models.Fault{Path: f.Path, Type: p.slug, Message: f.Text}
	}
	return list
}

// bounded returns as many faults as are sent.
func bounded(list []*models.Fault) []*models.Fault {
	size := 0
	for i, f := range list {
		if size += len(f.Path) + len(f.Message) + len(`{"path":"","type":"unknown-field","message":""},`); size > maxFaults {
			return list[:i]
		}
	}
	return list
}

// problemIn returns the type of the first error that is not about the content, such as a wrong Content-Type; otherwise that of the first error.
func problemIn(all []error) problem {
	for _, err := range all {
		if p := problemAlone(err); p.status != http.StatusUnprocessableEntity {
			return p
		}
	}
	if len(all) > 0 {
		return problemAlone(all[0])
	}
	return problemOf(errs.Internal)
}

func problemAlone(err error) problem {
	class := errs.ClassOf(err)
	if _, own := errors.AsType[errs.Classified](err); own || class != errs.Internal {
		return problemOf(class)
	}
	if coded, ok := errors.AsType[oaerrors.Error](err); ok {
		status := int(coded.Code())
		if status < 400 || status >= 600 { // a rule of validation that failed
			status = http.StatusUnprocessableEntity
		}
		return problemWith(status)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return problem{"canceled", statusClientGone, true}
	case errors.Is(err, context.DeadlineExceeded):
		return problemOf(errs.Deadline)
	}
	return problemOf(errs.Internal)
}
