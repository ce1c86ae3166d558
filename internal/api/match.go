package api

import (
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state"
)

// entityTag is one member of an If-Match header (RFC 9110, 8.8.3). A weak one never matches.
var entityTag = regexp.MustCompile(`^(W/)?"[!#-~]*"$`)

// ifMatch returns the condition that r makes by its header If-Match: the generation of the object is one of those in it.
func ifMatch(r *http.Request) (state.Condition, error) {
	given := strings.Join(r.Header.Values("If-Match"), ", ")
	any := strings.TrimSpace(given) == "*"
	var tags []string
	for tag := range strings.SplitSeq(given, ",") {
		tag = strings.TrimSpace(tag)
		if given != "" && !any && !entityTag.MatchString(tag) {
			return nil, errs.New(errs.Malformed, "header If-Match: is %.*q; use a generation in double quotes, such as \"3\"", maxQuoted, given)
		}
		tags = append(tags, tag)
	}
	return func(v *state.View) error {
		now := `"` + strconv.FormatInt(v.Generation, 10) + `"`
		if given == "" || any || slices.Contains(tags, now) {
			return nil
		}
		return errs.New(errs.Precondition, "%s %d has generation %d, and If-Match asks for %.*s: read it again", v.Class, v.ID, v.Generation, maxQuoted, given)
	}, nil
}
