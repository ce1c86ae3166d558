package api

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestPendingIsUnsupported: a request that uses a field that this version lacks returns 501 and names it. Its lines go as the
// features come.
func TestPendingIsUnsupported(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tests := []struct{ method, target, body, want string }{
		{"POST", "/container", `{"command":"x","mount":{"id":1},"shm_size":1048576}`, "container.shm_size"},
		{"POST", "/mount", `{"kind":"attach","attach":{"fs_type":"ext4","attach":{"id":1},"partition":{"type":"root"}}}`, "mount.attach.partition_selector"},
		{"POST", "/attach", `{"kind":"http","http":{"urls":["http://127.0.0.1/a"]}}`, `"http"`},
	}
	for _, tt := range tests {
		r := httptest.NewRequest(tt.method, basePath+tt.target, strings.NewReader(tt.body))
		r.Header.Set("Content-Type", "application/json")
		out := httptest.NewRecorder()
		w.handler.ServeHTTP(out, r)
		expectError(t, out, http.StatusNotImplemented, tt.want)
	}
}

// TestPartitionInTwoForms: the object form of a partition is a field of its own behind the intake, and a limit can be a word.
func TestPartitionInTwoForms(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ definition, body, want string }{
		{"mount_attach", `{"attach":{"id":1},"fs_type":"ext4","partition":{"type":"root"}}`, `{"attach":{"id":1},"fs_type":"ext4","partition_selector":{"type":"root"}}`},
		{"mount_attach", `{"attach":{"id":1},"fs_type":"ext4","partition":2}`, `{"attach":{"id":1},"fs_type":"ext4","partition":2}`},
		{"container_rlimit", `{"type":"core","soft":"unlimited","hard":"unlimited"}`, `{"hard":-1,"soft":-1,"type":"core"}`},
		{"attach", `{"kind":"local","identity":{"digest":"x"},"needed_by":[{"id":1}],"generation":4}`, `{"kind":"local"}`},
	} {
		got, n := normalized(t, tt.definition, tt.body)
		if err := n.faults.Err(); err != nil || got != tt.want {
			t.Errorf("%s: %v\ngot  %s\nwant %s", tt.body, err, got, tt.want)
		}
	}
}
