package api

import "testing"

func TestRefsOfIDsAreLeftOut(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"id":4,"refs":0}`: `{"id":4}`,
		`{"id":4,"refs":1}`: `{"id":4,"refs":1}`,
		`{"mount":{"id":3,"kind":"overlay","refs":0,"lower":[{"id":1,"refs":0}, {"id":2,"refs":0}]}}`: `{"mount":{"id":3,"kind":"overlay","refs":0,"lower":[{"id":1}, {"id":2}]}}`,
		`{"labels":{"id":"1","refs":"0"},"a":"{\"id\":1,\"refs\":0}\u009b<"}`:                         `{"labels":{"id":"1","refs":"0"},"a":"{\"id\":1,\"refs\":0}\u009b<"}`,
		`[]`: `[]`,
	} {
		if got := idWithRefs.ReplaceAllString(in, "$1}"); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}
