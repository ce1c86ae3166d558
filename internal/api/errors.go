package api

import (
	"context"
	"encoding/json"
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

// statusOf is the table of errors: what HTTP calls each class. Besides it there are only what net/http and
// go-openapi find themselves (404 and 405 for unknown paths and methods, 406), and 403, 408, 413, 415, 429 and 503 of this package.
func statusOf(class errs.Class) int {
	switch class {
	case errs.Malformed:
		return http.StatusBadRequest
	case errs.NotFound:
		return http.StatusNotFound
	case errs.Conflict:
		return http.StatusConflict
	case errs.Invalid:
		return http.StatusUnprocessableEntity
	case errs.Unsupported:
		return http.StatusNotImplemented
	case errs.Remote:
		return http.StatusBadGateway
	case errs.Deadline:
		return http.StatusGatewayTimeout
	default:
		return http.StatusInternalServerError
	}
}

// serveError answers r with err. It has the signature that go-openapi wants.
func serveError(w http.ResponseWriter, r *http.Request, err error) {
	status, message := explain(r, err)
	if e := exchangeOf(r); e != nil {
		e.failure = message
	}
	if notAllowed, ok := errors.AsType[*oaerrors.MethodNotAllowedError](err); ok {
		slices.Sort(notAllowed.Allowed)
		w.Header().Set("Allow", allowed(notAllowed))
	}
	writeError(w, status, message)
}

func allowed(err *oaerrors.MethodNotAllowedError) string {
	return strings.Join(slices.Sorted(slices.Values(err.Allowed)), ", ")
}

func writeError(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	// The only error left is that of a client that is gone.
	_ = out.Encode(&models.Error{Code: int64(status), Message: &message, See: docsPath + "#section/Errors/" + sectionOf(status)})
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
		return "503-shutting-down"
	case http.StatusGatewayTimeout:
		return "504-deadline"
	case http.StatusInsufficientStorage:
		return "507-out-of-space"
	default:
		return "500-internal"
	}
}

// maxMessage is how many bytes of a message are sent. A body of a megabyte can hold a hundred thousand faults.
const (
	maxMessage = 4 << 10
	cut        = " ... and more"
)

// explain finds status and message for err. The message is never empty.
func explain(r *http.Request, err error) (status int, message string) {
	if cause := context.Cause(r.Context()); cause != nil && errors.Is(err, context.Canceled) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	status = statusOfError(err)
	if err != nil {
		message = faultsOf(err)
	}
	if e := exchangeOf(r); e != nil && status == http.StatusUnprocessableEntity && len(e.ignored) > 0 {
		message += "; ignored: " + strings.Join(e.ignored, ", ")
	}
	switch {
	case message == "":
		message = strings.ToLower(http.StatusText(status))
	case len(message) > maxMessage:
		message = strings.ToValidUTF8(message[:maxMessage-len(cut)], "") + cut
	}
	return status, message
}

func statusOfError(err error) int {
	if own, ok := errors.AsType[*errs.Error](err); ok {
		return statusOf(own.Class)
	}
	if all, ok := errors.AsType[*oaerrors.CompositeError](err); ok {
		return statusOfAll(all.Errors)
	}
	if coded, ok := errors.AsType[oaerrors.Error](err); ok {
		return plainStatus(int(coded.Code()))
	}
	switch {
	case errors.Is(err, context.Canceled):
		return statusClientGone
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// statusOfAll returns the status of the first error that is not about the content, such as a wrong
// Content-Type, else that of invalid content.
func statusOfAll(all []error) int {
	for _, err := range all {
		if status := statusOfError(err); status != http.StatusUnprocessableEntity {
			return status
		}
	}
	return http.StatusUnprocessableEntity
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
