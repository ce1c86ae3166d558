package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

func alertRules() string { return filepath.Join(harness.Root(), "build/monitoring/alerts.yaml") }

// alerts returns the names of the alerts in the package.
func alerts(t testing.TB) (names []string) {
	t.Helper()
	text, err := os.ReadFile(alertRules())
	must(t, err)
	for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(text), -1) {
		names = append(names, m[1])
	}
	return names
}

// fire has Prometheus evaluate the rules of the package over series that have one value for ten minutes and another one for the next ten, and
// compares the alerts that fire then.
func fire(t testing.TB, before, after map[string]float64, want ...string) {
	t.Helper()
	testkit.Need(t, "promtool")
	var b strings.Builder
	fmt.Fprintf(&b, "rule_files: [%q]\nevaluation_interval: 1m\ntests:\n- interval: 1m\n  input_series:\n", alertRules())
	for _, series := range slices.Sorted(maps.Keys(after)) {
		name, labels, _ := strings.Cut(strings.TrimSuffix(series, "}"), "{")
		all := []string{`instance="node"`, `job="imageapi"`}
		for pair := range strings.SplitSeq(labels, ",") {
			if key, value, ok := strings.Cut(pair, "="); ok {
				all = append(all, fmt.Sprintf("%s=%q", key, value))
			}
		}
		first, ok := before[series]
		value := fmt.Sprintf("%vx9 %vx10", flat(first), flat(after[series]))
		if !ok {
			value = fmt.Sprintf("_x9 %vx10", flat(after[series]))
		}
		fmt.Fprintf(&b, "  - series: '%s{%s}'\n    values: '%s'\n", name, strings.Join(all, ","), value)
	}
	b.WriteString("  promql_expr_test:\n")
	for _, alert := range alerts(t) {
		n := 0
		if slices.Contains(want, strings.TrimPrefix(alert, "ImageAPI")) {
			n = 1
		}
		fmt.Fprintf(&b, "  - expr: clamp_max(count(ALERTS{alertname=%q, alertstate=\"firing\"}) or vector(0), 1)\n    eval_time: 20m\n    exp_samples: [{labels: '{}', value: %d}]\n", alert, n)
	}
	file := filepath.Join(t.TempDir(), "test.yaml")
	must(t, os.WriteFile(file, []byte(b.String()), 0o600))
	promtool(t, "", "test", "rules", file)
}

// flat is a value that stays the same, as promtool writes it.
func flat(v float64) string {
	return fmt.Sprintf("%.3f+0", math.Round(v*1e3)/1e3)
}

// Each alert of the package fires for the series that it is about, and for no others.
func TestAlerts(t *testing.T) {
	t.Parallel()
	promtool(t, "", "check", "rules", alertRules())
	type series = map[string]float64
	tested := map[string]bool{}
	for alert, c := range map[string]struct{ before, after series }{
		"Down":                {series{"up{}": 1}, series{"up{}": 0}},
		"ObjectBroken":        {nil, series{"imageapi_objects{class=mount,kind=nfs,phase=broken}": 1}},
		"Waiting":             {nil, series{"imageapi_oldest_wait_seconds{class=mount,kind=nfs}": 121}},
		"SessionLost":         {nil, series{"imageapi_sessions{kind=iscsi,state=recovering}": 1}},
		"Corruption":          {nil, series{"imageapi_corrupted_attachments{}": 1}},
		"OverlayFull":         {nil, series{"imageapi_overlay_used_bytes{id=3}": 95, "imageapi_overlay_limit_bytes{id=3}": 100}},
		"RunDirectoryFull":    {nil, series{"imageapi_run_directory_free_bytes{}": 5, "imageapi_run_directory_size_bytes{}": 100}},
		"ContainerDead":       {nil, series{"imageapi_containers{state=dead}": 1}},
		"ContainerRestarting": {series{"imageapi_container_restarts_total{}": 0}, series{"imageapi_container_restarts_total{}": 6}},
		"OutOfMemory":         {series{"imageapi_container_oom_runs_total{}": 0}, series{"imageapi_container_oom_runs_total{}": 1}},
		"TeardownStuck":       {series{"imageapi_teardown_retries_total{class=mount,kind=nfs}": 0}, series{"imageapi_teardown_retries_total{class=mount,kind=nfs}": 6}},
		"InternalErrors":      {series{"imageapi_requests_total{code=500,operation=mount}": 0}, series{"imageapi_requests_total{code=500,operation=mount}": 1}},
		"RequestsRefused":     {series{"imageapi_refused_requests_total{cause=host}": 0}, series{"imageapi_refused_requests_total{cause=host}": 30}},
		"AuditFailed":         {series{"imageapi_audit_records_lost_total{}": 0}, series{"imageapi_audit_records_lost_total{}": 1}},
		"CertificateExpires":  {nil, series{"imageapi_certificate_expiry_timestamp_seconds{}": 3600}}, // the test begins at the time 0
		"ReloadFailed":        {nil, series{"imageapi_last_reload_successful{}": 0}},
		"EventsMissed":        {series{"imageapi_event_resets_total{reason=missed}": 0}, series{"imageapi_event_resets_total{reason=missed}": 1}},
	} {
		fire(t, c.before, c.after, alert)
		tested["ImageAPI"+alert] = true
	}
	for _, alert := range alerts(t) {
		if !tested[alert] {
			t.Errorf("no test fires %s", alert)
		}
	}
}

// Faults that are caused in the kernel and in the server fire the alerts that are about them, by what a scrape then shows; before there are none.
func TestAlertsOfRealFaults(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	certificates := t.TempDir()
	disk, fill := smallDisk(t)
	certificate(t, certificates)
	n := newNode(t, "--audit-log", filepath.Join(disk, "audit.log"), "--scheme", "https", "--tls-port", freePort(t),
		"--tls-certificate", filepath.Join(certificates, "crt"), "--tls-key", filepath.Join(certificates, "key"))
	base := n.mount(t, squash(n.image))
	overlay := n.mount(t, &models.Mount{Kind: models.MountKindOverlay, Overlay: &models.MountOverlay{
		Lower: []*models.Mount{{ID: base.ID}}, Upper: &models.MountOverlayUpper{Tmpfs: &models.MountOverlayTmpfs{Size: 4 << 20}},
	}})
	before := scrape(t, n)
	before["up{}"] = 1
	fire(t, before, before)
	dies := n.create(t, &models.Container{Command: to("/bin/false"), Mount: mountID(overlay.ID), State: models.ContainerStateRunning})
	n.reaches(t, dies.ID, models.ContainerStateDead)
	testkit.Eventually(t, "the overlay is full", func() bool {
		f, err := os.OpenFile(filepath.Join(overlay.Mountpoint, "filled"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		must(t, err)
		defer f.Close()
		_, err = f.Write(make([]byte, 1<<20))
		return err != nil
	})
	broken := n.mount(t, squash(n.image))
	must(t, unix.Unmount(broken.Mountpoint, unix.MNT_DETACH))
	n.becomesBroken(t, "/mount", broken.ID, "")
	must(t, os.WriteFile(filepath.Join(certificates, "crt"), nil, 0o600))
	n.Signal(t, syscall.SIGHUP)
	testkit.Eventually(t, "the failed reload", func() bool { return scrape(t, n)["imageapi_last_reload_successful{}"] == 0 })
	free := fill()
	testkit.Eventually(t, "a refused change", func() bool {
		answer, err := n.Do(t.Context(), http.MethodDelete, "/container?id=99999", nil)
		must(t, err)
		return answer.Status == http.StatusInsufficientStorage
	})
	after := scrape(t, n)
	free()
	after["up{}"] = 1
	fire(t, before, after, "ContainerDead", "OverlayFull", "ObjectBroken", "ReloadFailed", "AuditFailed")
}

// The rules and the dashboard ask for metrics that exist.
func TestMonitoringAsksForMetricsThatExist(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	page, err := os.ReadFile(filepath.Join(harness.Root(), "docs/metrics.md"))
	must(t, err)
	text := exposition(t, n)
	for _, file := range []string{alertRules(), filepath.Join(harness.Root(), "build/monitoring/dashboard.json")} {
		data, err := os.ReadFile(file)
		must(t, err)
		if strings.HasSuffix(file, ".json") && !json.Valid(data) {
			t.Errorf("%s is not JSON", file)
		}
		names := regexp.MustCompile(`imageapi_\w+`).FindAllString(string(data), -1)
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			name = strings.TrimSuffix(name, "_bucket")
			if !strings.Contains(text, "# HELP "+name+" ") && !strings.Contains(string(page), "`"+name+"`") {
				t.Errorf("%s asks for %s", filepath.Base(file), name)
			}
		}
	}
}
