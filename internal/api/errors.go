package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	oaerrors "github.com/go-openapi/errors"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

// statusClientGone stands in the log for a request whose client did not wait for the answer.
const statusClientGone = 499

// ErrStopping is the cause to cancel requests with when the daemon ends: they are answered 503.
var ErrStopping error = oaerrors.New(http.StatusServiceUnavailable, "the daemon is shutting down")

// problem is a type of errors, as programs see it. The reference has the same table.
type problem struct {
	slug   string
	status int
	retry  bool // the same request can succeed later
}

// problemOf is the table of errors.
func problemOf(class errs.Class) problem {
	switch class {
	case errs.Malformed:
		return problem{"invalid", http.StatusBadRequest, false}
	case errs.Unknown:
		return problem{"unknown-field", http.StatusBadRequest, false}
	case errs.Invalid:
		return problem{"invalid", http.StatusUnprocessableEntity, false}
	case errs.NotFound:
		return problem{"not-found", http.StatusNotFound, false}
	case errs.Conflict:
		return problem{"conflict", http.StatusConflict, true}
	case errs.Busy:
		return problem{"busy", http.StatusConflict, true}
	case errs.InUse:
		return problem{"in-use", http.StatusConflict, true}
	case errs.NameTaken:
		return problem{"name-taken", http.StatusConflict, true}
	case errs.Precondition:
		return problem{"precondition-failed", http.StatusPreconditionFailed, false}
	case errs.RolledBack:
		return problem{"rolled-back", http.StatusUnprocessableEntity, false}
	case errs.Unsupported:
		return problem{"unsupported", http.StatusNotImplemented, false}
	case errs.Remote:
		return problem{"remote-refused", http.StatusBadGateway, true}
	case errs.Deadline:
		return problem{"timeout", http.StatusGatewayTimeout, true}
	case errs.OutOfSpace:
		return problem{"out-of-space", http.StatusInsufficientStorage, true}
	case errs.Exhausted:
		return problem{"exhausted", http.StatusServiceUnavailable, true}
	default:
		return problem{"internal", http.StatusInternalServerError, false}
	}
}

// problemWith is the type of an error without a class: one that net/http or go-openapi found (404 and 405 for unknown paths and methods,
// 406), or a 403, 408, 413, 415, 429 or 503 of this package.
func problemWith(status int) problem {
	switch status {
	case http.StatusForbidden:
		return problem{"forbidden", status, false}
	case http.StatusNotFound:
		return problem{"not-found", status, false}
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		return problem{"timeout", status, true}
	case http.StatusTooManyRequests:
		return problem{"too-many-requests", status, true}
	case http.StatusServiceUnavailable:
		return problem{"shutting-down", status, true}
	case http.StatusNotImplemented:
		return problem{"unsupported", status, false}
	case http.StatusInternalServerError:
		return problemOf(errs.Internal)
	default:
		return problem{"invalid", status, false}
	}
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
		slices.Sort(notAllowed.Allowed)
		w.Header().Set("Allow", allowed(notAllowed))
	}
	writeError(w, answer)
}

func allowed(err *oaerrors.MethodNotAllowedError) string {
	return strings.Join(slices.Sorted(slices.Values(err.Allowed)), ", ")
}

func writeError(w http.ResponseWriter, answer *models.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(int(answer.Code))
	// The only error left is that of a client that is gone.
	_ = jsonProducer().Produce(w, answer)
}

// newError returns an error as it is answered.
func newError(p problem, message string) *models.Error {
	return &models.Error{Code: int64(p.status), Message: &message, See: docsPath + "#section/Errors/" + sectionOf(p.status), Type: p.slug}
}

// sectionOf names the section of the reference that tells cause and remedy of the errors with a status. docs/errors.md has one of
// the same name.
func sectionOf(status int) string {
	switch status {
	case http.StatusBadRequest:
		return "400-malformed"
	case http.StatusForbidden:
		return "403-forbidden"
	case http.StatusNotFound:
		return "404-not-found"
	case http.StatusMethodNotAllowed:
		return "405-method"
	case http.StatusNotAcceptable:
		return "406-accept"
	case http.StatusRequestTimeout:
		return "408-too-slow"
	case http.StatusConflict:
		return "409-conflict"
	case http.StatusPreconditionFailed:
		return "412-precondition"
	case http.StatusRequestEntityTooLarge:
		return "413-too-large"
	case http.StatusUnsupportedMediaType:
		return "415-content-type"
	case http.StatusUnprocessableEntity:
		return "422-invalid"
	case http.StatusTooManyRequests:
		return "429-too-many"
	case http.StatusNotImplemented:
		return "501-unsupported"
	case http.StatusBadGateway:
		return "502-remote"
	case http.StatusServiceUnavailable:
		return "503-unavailable"
	case http.StatusGatewayTimeout:
		return "504-deadline"
	case http.StatusInsufficientStorage:
		return "507-out-of-space"
	default:
		return "500-internal"
	}
}

// maxMessage is how many bytes of a message are sent, and maxFaults of the list of faults. A body of a megabyte can hold a hundred
// thousand of them.
const (
	maxMessage = 4 << 10
	maxUpgrade = 512 // likewise, of a refused upgrade: clients read no more than a KiB of that answer
	maxFaults  = 3 << 10
	cut        = " ... and more"
)

// explain returns the answer for err. Its message is never empty.
func explain(r *http.Request, err error) *models.Error {
	if cause := context.Cause(r.Context()); cause != nil && errors.Is(err, context.Canceled) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	p, message := problemIn(err), ""
	if err != nil {
		message = faultsOf(err)
	}
	faults, longest := listFaults(err, p), maxMessage
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

// listFaults returns the places in the request that err tells of.
func listFaults(err error, p problem) []*models.Fault {
	if faults, ok := errors.AsType[errs.Faults](err); ok {
		return faultsAs(faults, p)
	}
	if at, ok := errors.AsType[*errs.Located](err); ok {
		return faultsAs(errs.Faults{{Path: at.Path, Text: at.Err.Error()}}, p)
	}
	if all, ok := errors.AsType[*oaerrors.CompositeError](err); ok {
		var list []*models.Fault
		for _, one := range all.Errors {
			list = append(list, listFaults(one, p)...)
		}
		return list
	}
	if rule, ok := errors.AsType[*oaerrors.Validation](err); ok && rule.Name != "" {
		return faultsAs(errs.Faults{{Path: rule.Name, Text: rule.Error()}}, p)
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

func problemIn(err error) problem {
	class := errs.ClassOf(err)
	if _, own := errors.AsType[*errs.Error](err); own || class != errs.Internal {
		return problemOf(class)
	}
	if all, ok := errors.AsType[*oaerrors.CompositeError](err); ok {
		return problemInAll(all.Errors)
	}
	if coded, ok := errors.AsType[oaerrors.Error](err); ok {
		return problemWith(plainStatus(int(coded.Code())))
	}
	switch {
	case errors.Is(err, context.Canceled):
		return problem{"canceled", statusClientGone, true}
	case errors.Is(err, context.DeadlineExceeded):
		return problemOf(errs.Deadline)
	}
	return problemOf(errs.Internal)
}

// problemInAll returns the type of the first error that is not about the content, such as a wrong
// Content-Type, else that of invalid content.
func problemInAll(all []error) problem {
	for _, err := range all {
		if p := problemIn(err); p.status != http.StatusUnprocessableEntity {
			return p
		}
	}
	return problemOf(errs.Invalid)
}

// plainStatus translates go-openapi's own codes from 600 up: they tell the rule of validation that failed.
func plainStatus(code int) int {
	if code < 400 || code >= 600 {
		return http.StatusUnprocessableEntity
	}
	return code
}

// faultsOf returns the texts of all errors that err collects, in one line.
func faultsOf(err error) string {
	all, ok := errors.AsType[*oaerrors.CompositeError](err)
	if !ok {
		return err.Error()
	}
	texts := make([]string, len(all.Errors))
	for i, e := range all.Errors {
		texts[i] = faultsOf(e)
	}
	return strings.Join(texts, "; ")
}
