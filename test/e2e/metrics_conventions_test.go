package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// exposition returns the page of metrics as it is.
func exposition(t testing.TB, n *node) string {
	t.Helper()
	resp, err := n.Page(t.Context(), "/metrics", nil)
	must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	return string(text)
}

// promtool runs Prometheus' own checks.
func promtool(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	testkit.Need(t, "promtool")
	cmd := exec.Command("promtool", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// The metrics follow the conventions of Prometheus: by its own linter, without empty labels, with the status of a response as code, and with
// help texts that are noun phrases.
func TestMetricsFollowTheConventions(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, start(forever, n.root()))
	n.reaches(t, c.ID, models.ContainerStateRunning)
	text := exposition(t, n)
	if out := promtool(t, text, "check", "metrics"); out != "" {
		t.Errorf("promtool check metrics: %s", out)
	}
	for scanner := bufio.NewScanner(strings.NewReader(text)); scanner.Scan(); {
		line := scanner.Text()
		if help, ok := strings.CutPrefix(line, "# HELP imageapi_"); ok {
			_, help, _ = strings.Cut(help, " ")
			noun := slices.ContainsFunc([]string{"Number", "Duration", "Age", "Size", "Free", "Used", "Time", "Result", "Version", "Processor", "Memory"}, func(s string) bool { return strings.HasPrefix(help, s+" ") })
			if !noun || !strings.HasSuffix(help, ".") {
				t.Errorf("the help is not a noun phrase: %s", line)
			}
		}
		if strings.Contains(line, `=""`) || strings.HasPrefix(line, "imageapi_") && strings.Contains(line, "status=") {
			t.Error(line)
		}
	}
}

// Series whose values are known beforehand exist from the start, so that the first event is an increase.
func TestMetricsBeginWithZero(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	got := scrape(t, n)
	for _, series := range []string{
		"imageapi_requests_total{code=201,operation=create_container}",
		"imageapi_requests_total{code=500,operation=mount}",
		"imageapi_refused_requests_total{cause=host}",
		"imageapi_act_failures_total{act=up,class=attach,kind=rbd}",
		"imageapi_act_failures_total{act=start,class=container,kind=container}",
		"imageapi_teardown_retries_total{class=mount,kind=nfs}",
		"imageapi_container_exits_total{reason=oom}",
		"imageapi_container_exits_total{reason=start-failed}",
		"imageapi_container_oom_runs_total{}",
		"imageapi_event_resets_total{reason=missed}",
		"imageapi_sessions{kind=iscsi,state=recovering}",
		"imageapi_corrupted_attachments{}",
		"imageapi_oldest_wait_seconds{class=attach,kind=iscsi}",
		"imageapi_audit_records_lost_total{}",
	} {
		if value, there := got[series]; !there || value != 0 {
			t.Errorf("%s: %v %v", series, value, there)
		}
	}
	for _, series := range []string{
		"imageapi_requests_in_flight{}", "imageapi_run_directory_free_bytes{}", "imageapi_run_directory_size_bytes{}",
		"imageapi_cache_free_bytes{}", "imageapi_cache_size_bytes{}",
	} {
		if got[series] <= 0 {
			t.Errorf("%s: %v", series, got[series])
		}
	}
}

// What a container uses, how full its overlay is, how it ends, and the requests that last are counted.
func TestMetricsOfContainers(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	overlay := n.mount(t, n.root())
	c := n.create(t, &models.Container{
		Command: to(`/bin/sh -c "dd if=/dev/zero of=/filled bs=1M count=3; echo written; while :; do sleep 1; done"`), Mount: mountID(overlay.ID), State: models.ContainerStateRunning,
	})
	if !testkit.Settles(func() bool {
		return scrape(t, n)[fmt.Sprintf("imageapi_overlay_used_bytes{id=%d}", overlay.ID)] >= 3<<20
	}) {
		t.Error("the overlay does not become full")
	}
	got := scrape(t, n)
	if got[fmt.Sprintf("imageapi_overlay_limit_bytes{id=%d}", overlay.ID)] < 3<<20 || got[fmt.Sprintf("imageapi_container_cpu_seconds_total{id=%d}", c.ID)] <= 0 {
		t.Errorf("use is not counted: %v", got)
	}
	n.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("/container/wait?id=%d&state=running", c.ID), nil, nil)
	n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
	ends := n.create(t, &models.Container{Command: to("/bin/true"), Mount: mountID(overlay.ID), State: models.ContainerStateRunning})
	n.reaches(t, ends.ID, models.ContainerStateExited)
	got = scrape(t, n)
	if got["imageapi_container_exits_total{reason=exited}"] != 1 || got["imageapi_long_request_duration_seconds{operation=wait_for_container}"] < 1 {
		t.Errorf("ends and long requests are not counted: %v", got)
	}
	for series := range got {
		if strings.HasPrefix(series, "imageapi_request_duration_seconds{operation=wait") || strings.HasSuffix(series, fmt.Sprintf("{id=%d}", c.ID)) {
			t.Errorf("%s is there", series)
		}
	}
}

// A request that is refused is counted by its cause.
func TestMetricsOfRefusedRequests(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, header := range []http.Header{{"Origin": {"https://elsewhere.example"}}, {"Sec-Fetch-Site": {"cross-site"}}} {
		resp, err := n.Stream(t.Context(), "/container", header)
		must(t, err)
		must(t, resp.Body.Close())
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%v: %d", header, resp.StatusCode)
		}
	}
	if got := scrape(t, n)["imageapi_refused_requests_total{cause=site}"]; got != 2 {
		t.Errorf("%v requests are counted", got)
	}
}

// The expiry of the certificate and the result of a reload are shown, also if the new files are no certificate.
func TestMetricsOfCertificates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certificate(t, dir)
	n := newNode(t, "--scheme", "https", "--tls-port", freePort(t), "--tls-certificate", filepath.Join(dir, "crt"), "--tls-key", filepath.Join(dir, "key"))
	got := scrape(t, n)
	loaded := got["imageapi_last_reload_success_timestamp_seconds{}"]
	if left := time.Until(time.Unix(int64(got["imageapi_certificate_expiry_timestamp_seconds{}"]), 0)); left < 50*time.Minute || left > time.Hour || got["imageapi_last_reload_successful{}"] != 1 {
		t.Errorf("the certificate expires in %v, loaded: %v", left, got["imageapi_last_reload_successful{}"])
	}
	must(t, os.WriteFile(filepath.Join(dir, "crt"), []byte("none"), 0o600))
	n.Signal(t, syscall.SIGHUP)
	testkit.Eventually(t, "the failed reload", func() bool {
		got := scrape(t, n)
		return got["imageapi_last_reload_successful{}"] == 0 && got["imageapi_last_reload_success_timestamp_seconds{}"] == loaded
	})
	certificate(t, dir)
	n.Signal(t, syscall.SIGHUP)
	testkit.Eventually(t, "the reload", func() bool {
		got := scrape(t, n)
		return got["imageapi_last_reload_successful{}"] == 1 && got["imageapi_last_reload_success_timestamp_seconds{}"] > loaded
	})
}

// A client of events that has to begin again is counted, and so are failed teardowns that are tried again.
func TestMetricsOfResetsAndRetries(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	before := scrape(t, n)
	ctx, cancel := context.WithCancel(t.Context())
	resp, err := n.Stream(ctx, "/events", http.Header{"Last-Event-Id": {"elsewhere-7"}})
	must(t, err)
	_, err = resp.Body.Read(make([]byte, 1))
	must(t, err)
	got := scrape(t, n)
	if got["imageapi_event_resets_total{reason=restart}"] != before["imageapi_event_resets_total{reason=restart}"]+1 || got["imageapi_event_listeners{}"] != 1 || got["imageapi_requests_in_flight{}"] < 2 {
		t.Errorf("a stream that begins again is not counted: %v", got)
	}
	cancel()
	must(t, resp.Body.Close())
	c := n.create(t, start(forever, n.root()))
	holder, err := os.Open(c.Mount.Mountpoint)
	must(t, err)
	defer holder.Close()
	answer, err := n.Do(t.Context(), http.MethodDelete, fmt.Sprintf("/container?id=%d&force=true", c.ID), nil)
	must(t, err)
	if !testkit.Settles(func() bool { return scrape(t, n)["imageapi_teardown_retries_total{class=mount,kind=overlay}"] > 0 }) {
		t.Errorf("no retry is counted after %d %s", answer.Status, answer.Message())
	}
}
