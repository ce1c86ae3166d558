package api

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	oaerrors "github.com/go-openapi/errors"
	"github.com/go-openapi/runtime/middleware"
	"github.com/go-viper/mapstructure/v2"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// deprecated is since when the form of version 0.1 is (RFC 9745): 1 December 2026.
const deprecated = "@1796083200"

// intake stands before the generated code, reads the body once, and passes it on as the generated code accepts it.
//
// Clients echo earlier responses and were written for older servers. So read-only and unknown fields are
// dropped instead of refused (the unknown ones are named in a Warning header), null is the same as absent, an
// object given with both id and definition is reduced to its id, and the spellings of older versions are
// translated. Which fields are read-only, and which rules hold for the others, comes from the specification. The
// generated code checks the rules too, but of the faults in a nested object it reports only the first.
func (a *api) intake(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		operation := middleware.MatchedRouteFrom(r).Operation
		e := exchangeOf(r)
		e.operation, e.known = operation.ID, true
		err := checkQuery(r, operation)
		switch shape := a.spec.bodies[operation.ID]; {
		case err != nil:
		case shape == nil:
			err = dropBody(r)
		default:
			err = a.takeBody(w, r, shape)
		}
		if err != nil {
			serveError(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// parsedBody is the body of a request after the intake.
type parsedBody struct {
	io.ReadCloser
	value any
}

// consume is the consumer of the generated code.
func consume(r io.Reader, target any) error {
	body, ok := r.(parsedBody)
	if !ok {
		return errors.New("the body did not pass the intake")
	}
	return fillIn(body.value, target)
}

// fillIn fills in a generated model from a normalized value. Null removes a field of a model that has it already.
func fillIn(value, target any) error {
	d, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		Result: target, TagName: "json", ZeroFields: true, DecodeHook: mapstructure.TextUnmarshallerHookFunc(),
	})
	if err != nil {
		return err
	}
	return d.Decode(value)
}

// dropBody forgets a body that the operation has no use for. Clients send an empty one of type JSON. It is read: before its end
// net/http does not notice that a client hangs up.
func dropBody(r *http.Request) error {
	const longest = 256 << 10 // what net/http itself reads of an unused body
	n, err := io.CopyN(io.Discard, r.Body, longest)
	if err != nil && !errors.Is(err, io.EOF) {
		return tornBody(r, err)
	}
	if n > 0 {
		if err := checkType(r); err != nil {
			return err
		}
		warn(r, "the body of a %s is ignored", r.Method)
	}
	r.Body, r.ContentLength = http.NoBody, 0
	return nil
}

func (a *api) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(innermost(w), r.Body, a.MaxBody))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, oaerrors.New(http.StatusRequestEntityTooLarge, "read body: the body is longer than %d bytes (the limit is set by --max-body)", a.MaxBody)
	}
	if err != nil {
		return nil, tornBody(r, err)
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, errs.New(errs.Malformed, "read body: the body is empty; send the definition as JSON")
	}
	return body, checkType(r)
}

// tornBody is the error for a body of which not all came. A slow client has some time left to read the response.
func tornBody(r *http.Request, err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return errs.New(errs.Malformed, "read body: %w", err)
	}
	outlast(r, 5*time.Second)
	return oaerrors.New(http.StatusRequestTimeout, "read body: not all of it came in time (the limit is set by --read-timeout)")
}

// checkType demands that a body is declared as JSON. That is a type that no form of a web page can have.
func checkType(r *http.Request) error {
	given := r.Header.Get("Content-Type")
	if media, _, err := mime.ParseMediaType(given); err != nil || media != "application/json" {
		return oaerrors.New(http.StatusUnsupportedMediaType, "read body: its Content-Type is %.*q: send application/json", maxQuoted, given)
	}
	return nil
}

// innermost returns the writer of net/http itself. Only by it can MaxBytesReader make the server wait before it
// closes the connection: else a client that is still sending gets a reset instead of the answer.
func innermost(w http.ResponseWriter) http.ResponseWriter {
	for {
		outer, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return w
		}
		w = outer.Unwrap()
	}
}

// takeBody reads and normalizes the body of r.
func (a *api) takeBody(w http.ResponseWriter, r *http.Request, s *shape) error {
	text, err := a.readBody(w, r)
	if err != nil {
		return err
	}
	value, err := decode(text, a.MaxNesting)
	if err != nil {
		return err
	}
	n := &normalizer{}
	if m, ok := value.(map[string]any); ok && s.name == "container_config" {
		n.changed = n.changes(s, a.spec.bodies["create_container"], m)
	}
	n.value = n.normalize(s.name, s, value, true)
	exchangeOf(r).body = n
	n.warn(r) // a dropped field can be the cause of a fault: a missing field is there by another name
	if err := cmp.Or(n.faults.Err(), n.pending.Of(errs.Unsupported)); err != nil {
		return err
	}
	r.Body, r.ContentLength = parsedBody{http.NoBody, n.value}, int64(len(text))
	return nil
}

// normalizer walks a body along the specification, and keeps the results.
type normalizer struct {
	value   any
	changed []string // fields, if the body is a change of a definition
	faults  errs.Faults
	old     bool        // it has a form that is deprecated
	dropped []string    // ignored fields, with the reasons
	unknown errs.Faults // the unknown ones of them
	pending errs.Faults // fields that this version does not implement
}

// changes returns the fields that a change of an object contains. A null is one: it removes the field (RFC 7396). Fields that only the
// whole object has are faults, unless requests never have them.
func (n *normalizer) changes(s, whole *shape, m map[string]any) (names []string) {
	whole.spell(m)
	for _, key := range slices.Sorted(maps.Keys(m)) {
		switch f := whole.Properties[key]; {
		case s.Properties[key] != nil:
			names = append(names, key)
		case f != nil && (key == "id" || f.ReadOnly):
			delete(m, key)
		case key == "state":
			n.faults.Add(s.name+"."+key, "is not part of the definition: change it by PATCH /container")
			delete(m, key)
		case f != nil:
			n.faults.Add(s.name+"."+key, "cannot change while the container exists: replace the container (POST /container/replace)")
			delete(m, key)
		}
	}
	return names
}

// normalize checks v and normalizes it in place; top means that it is the body itself.
func (n *normalizer) normalize(path string, s *shape, v any, top bool) any {
	switch s.Type {
	case "object":
		if m, ok := v.(map[string]any); ok && s.Named != nil {
			return n.dictionary(path, s, m)
		} else if ok {
			return n.object(path, s, m, top)
		}
	case "array":
		if list, ok := v.([]any); ok {
			return n.array(path, s, list)
		}
	case "string":
		if text, ok := v.(string); ok {
			n.text(path, s, text)
			return v
		}
	case "integer":
		if number, ok := v.(json.Number); ok {
			n.integer(path, number)
			return v
		}
		if text, ok := v.(string); ok {
			n.faults.Add(path, "must be of type integer, not string: write the number alone, without quotes and a unit")
			return text
		}
	case "boolean":
		if _, ok := v.(bool); ok {
			return v
		}
	}
	n.faults.Add(path, "must be of type %s, not %s", s.Type, typeName(v))
	return v
}

func (n *normalizer) object(path string, s *shape, m map[string]any, top bool) any {
	s.spell(m)
	if s.Properties["id"] != nil {
		id := n.id(path, m["id"], top)
		delete(m, "id")
		if id != "" {
			return map[string]any{"id": id}
		}
	}
	n.others(path, s, m)
	n.otherForms(path, s, m)
	for _, key := range slices.Sorted(maps.Keys(m)) {
		field := s.Properties[key]
		sub := path + "." + key
		switch {
		case field == nil:
			n.unknownField(sub, key, s, m)
			delete(m, key)
		case m[key] == nil && isPatch(s.name) && !field.ReadOnly:
			// It removes the field.
		case field.ReadOnly || m[key] == nil:
			delete(m, key)
		default:
			m[key] = n.normalize(sub, field, m[key], false)
			if isPending(definitionOf(s.name) + "." + key) {
				n.pending.Add(sub, "this version does not implement it: leave it out")
			}
		}
	}
	n.translate(path, s, m)
	for _, key := range s.Required {
		if _, given := m[key]; !given {
			n.faults.Add(path+"."+key, "is required")
		}
	}
	return m
}

// isPatch reports whether an object of a definition is a JSON merge patch, in which null means something.
func isPatch(definition string) bool { return definition == "container_replacement" }

// definitionOf returns the definition that has the fields of another one.
func definitionOf(name string) string {
	if isPatch(name) {
		return "container"
	}
	return name
}

// id returns the id that m's object is given by, or "". The body's own id is ignored: the server gives it.
func (n *normalizer) id(path string, v any, top bool) json.Number {
	if top || v == nil {
		return ""
	}
	number, ok := v.(json.Number)
	if !ok {
		n.faults.Add(path+".id", "must be of type integer, not %s", typeName(v))
		return ""
	}
	switch id := n.integer(path+".id", number); {
	case id < 0:
		n.faults.Add(path+".id", "is negative: ids start at 1")
		return number
	case id == 0:
		return ""
	}
	return number
}

func (n *normalizer) array(path string, s *shape, list []any) any {
	for i, item := range list {
		sub := path + "[" + strconv.Itoa(i) + "]"
		list[i] = n.normalize(sub, s.Items, item, false)
	}
	return list
}

// dictionary is an object whose names are the client's.
func (n *normalizer) dictionary(path string, s *shape, m map[string]any) any {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		sub := fmt.Sprintf("%s[%.*q]", path, maxQuoted, key)
		if strings.ContainsRune(key, 0) {
			n.faults.Add(sub, "is a name with a NUL character")
		}
		m[key] = n.normalize(sub, s.Named, m[key], false)
	}
	return m
}

func (n *normalizer) text(path string, s *shape, text string) {
	switch length := utf8.RuneCountInString(text); {
	case strings.ContainsRune(text, 0):
		n.faults.Add(path, "contains a NUL character, which no path, option or argument can")
	case length < s.MinLength:
		n.faults.Add(path, "must be at least %d characters long", s.MinLength)
	case s.MaxLength > 0 && length > s.MaxLength:
		n.faults.Add(path, "is %d characters long; use at most %d", length, s.MaxLength)
	case s.Pattern != nil && !s.Pattern.MatchString(text):
		n.faults.Add(path, "is %.*q; use a value that matches %s", maxQuoted, text, s.Pattern)
	case len(s.Enum) > 0 && !slices.Contains(s.Enum, text):
		n.faults.Add(path, "is %.*q; use one of %s", maxQuoted, text, strings.Join(s.Enum, ", "))
	}
}

func (n *normalizer) integer(path string, number json.Number) int64 {
	i, err := number.Int64()
	if err != nil {
		n.faults.Add(path, "must be an integer of 64 bits, not %.40s", number)
	}
	return i
}

// otherForms rewrites values that have a second form on the wire, before their types are checked.
func (n *normalizer) otherForms(path string, s *shape, m map[string]any) {
	switch s.name {
	case "mount_attach":
		n.partitionObject(path, m)
	case "container_rlimit":
		for _, key := range []string{"soft", "hard"} {
			if m[key] == "unlimited" {
				m[key] = json.Number("-1")
			}
		}
	}
}

// partitionObject moves a partition that is given as an object to partition_selector: the type of partition is integer.
func (n *normalizer) partitionObject(path string, m map[string]any) {
	selector, ok := m["partition"].(map[string]any)
	if !ok {
		return
	}
	if m["partition_selector"] != nil {
		n.faults.Add(path+".partition", "is an object although partition_selector is given too: give one of them")
	}
	m["partition_selector"] = selector
	delete(m, "partition")
}

// translate turns what older versions called differently into today's words.
func (n *normalizer) translate(path string, s *shape, m map[string]any) {
	switch s.name {
	case "attach_iscsi":
		n.oneSpelling(path, m, "max_commands", "max_comands")
	case "mount":
		n.mountOfRBD(path, m)
		n.mountOfURI(path, m)
	}
}

// oneSpelling replaces the field alias by name, which is what the field is called on the wire.
func (n *normalizer) oneSpelling(path string, m map[string]any, alias, name string) {
	v, ok := m[alias]
	if !ok {
		return
	}
	delete(m, alias)
	if other, both := m[name]; both && other != v {
		n.faults.Add(path+"."+alias, "differs from %s, which means the same: give one of them", name)
	}
	m[name] = v
}

// mountOfRBD turns the form of version 0.1, a mount of kind rbd, into a mount of kind attach over an attach of
// kind rbd.
func (n *normalizer) mountOfRBD(path string, m map[string]any) {
	if m["kind"] != "rbd" {
		return
	}
	old, ok := m["rbd"].(map[string]any)
	if !ok {
		n.faults.Add(path+".rbd", "is required for a mount of kind rbd")
		return
	}
	n.old = true
	device := map[string]any{"kind": "rbd"}
	move(device, old, "rbd")
	mount := map[string]any{"attach": device}
	move(mount, old, "fs_type", "mount_options")
	delete(m, "rbd")
	m["kind"], m["attach"] = "attach", mount
}

func move(to, from map[string]any, keys ...string) {
	for _, key := range keys {
		if v, ok := from[key]; ok {
			to[key] = v
		}
	}
}

// others drops the definitions of other kinds than the object's own.
func (n *normalizer) others(path string, s *shape, m map[string]any) {
	kind, ok := m["kind"].(string)
	kinds := s.Properties["kind"]
	if !ok || kinds == nil || !slices.Contains(kinds.Enum, kind) {
		return
	}
	for _, other := range kinds.Enum {
		if _, given := m[other]; given && other != kind && s.Properties[other] != nil {
			n.drop("not of kind "+kind, path+"."+other)
			delete(m, other)
		}
	}
}

// How many dropped fields are named, and how many characters of what a client sent are repeated to it.
const (
	maxNamed  = 8
	maxQuoted = 128
)

// unknownField drops a field that no version had, and names the one that may be meant: not one that is given, nor one that requests
// do not have.
func (n *normalizer) unknownField(path, key string, s *shape, m map[string]any) {
	var others []string
	for name, f := range s.Properties {
		if _, given := m[name]; !given && !f.ReadOnly {
			others = append(others, name)
		}
	}
	hint := suggest(key, others)
	n.dropped = append(n.dropped, fmt.Sprintf("unknown field %.*s%s", maxQuoted, path, hint))
	n.unknown = append(n.unknown, errs.Fault{Path: fmt.Sprintf("%.*s", maxQuoted, path), Text: "unknown field" + hint})
}

func (n *normalizer) drop(why, path string) {
	n.dropped = append(n.dropped, fmt.Sprintf("%s %.*s", why, maxQuoted, path))
}

// warn warns the client of what was dropped.
func (n *normalizer) warn(r *http.Request) {
	if n.old {
		exchangeOf(r).header.Set("Deprecation", deprecated)
	}
	for _, text := range n.dropped[:min(len(n.dropped), maxNamed)] {
		warn(r, "ignored: %s", text)
	}
	if more := len(n.dropped) - maxNamed; more > 0 {
		warn(r, "%d more fields ignored", more)
	}
}

func typeName(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case map[string]any:
		return "object"
	case []any:
		return "array"
	case string:
		return "string"
	case bool:
		return "boolean"
	default:
		return "number"
	}
}
