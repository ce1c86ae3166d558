package browser

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// Where the guides and the reference are.
const (
	guidesPath = "/imageapi/v1/docs/"
	docsPath   = guidesPath + "api/"
)

// cut fails a test that is not run where the network ends at the loopback interface, as `make browser` does.
func cut(t *testing.T) {
	t.Helper()
	testkit.Root(t)
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 {
			t.Fatalf("the network is not cut: there is %s; run this by make browser", i.Name)
		}
	}
}

// operation is one of the specification, as the server tells it.
type operation struct {
	OperationID string
	Summary     string
	Tags        []string
	method      string
	path        string
}

// section is the name that the page has for it.
func (o operation) section() string { return "tag/" + o.Tags[0] + "/operation/" + o.OperationID }

func operations(t *testing.T, d *harness.Daemon) (all []operation) {
	t.Helper()
	var spec struct {
		Paths map[string]map[string]operation
	}
	d.Unix(t).Must(t, http.StatusOK, http.MethodGet, "/swagger.json", nil, &spec)
	for path, methods := range spec.Paths {
		for method, o := range methods {
			o.method, o.path = method, path
			all = append(all, o)
		}
	}
	if len(all) < 10 {
		t.Fatalf("the specification has %d operations", len(all))
	}
	return all
}

// start starts a server and opens its reference in a browser.
func start(t *testing.T) (*harness.Daemon, *browser) {
	t.Helper()
	cut(t)
	d := harness.Start(t)
	b := open(t, "http://"+d.Address)
	b.size(1400, 900, false)
	b.show("http://" + d.Address + docsPath)
	return d, b
}

// TestOperations: each operation has its entry in the menu, and its part of the page with its method, path and examples.
func TestOperations(t *testing.T) {
	d, b := start(t)
	b.picture("top")
	for _, o := range operations(t, d) {
		part := fmt.Sprintf("document.querySelector(`[data-section-id='%s']`)", o.section())
		if !value[bool](b, "%s !== null", part) {
			t.Errorf("%s has no part of the page", o.OperationID)
			continue
		}
		if !value[bool](b, "document.querySelector(`[role=menuitem][data-item-id='%s']`) !== null", o.section()) {
			t.Errorf("%s is not in the menu", o.OperationID)
		}
		text := value[string](b, "%s.innerText", part)
		for _, want := range []string{o.Summary, o.path, strings.ToUpper(o.method), "Response samples"} {
			if !strings.Contains(strings.ToLower(text), strings.ToLower(want)) {
				t.Errorf("the part about %s does not tell %q", o.OperationID, want)
			}
		}
	}
}

// TestSearch: what is typed into the search field finds an operation, and a click goes there.
func TestSearch(t *testing.T) {
	_, b := start(t)
	const search = chromedp.CSS("input.search-input")
	b.do(chromedp.SendKeys(search, "freezes"))
	const result = `[data-role='search:results'] [role=menuitem]`
	b.until("something is found", "document.querySelectorAll(`%s`).length > 0", result)
	b.picture("found")
	if text := value[string](b, "document.querySelector(`%s`).innerText", result); !strings.Contains(text, "pause") {
		t.Errorf("it finds %q", text)
	}
	b.do(chromedp.Click(chromedp.CSS(result)))
	b.until("it leads there", `location.hash === "#tag/containers/operation/set_container_state"`)
	b.inView("tag/containers/operation/set_container_state")
	b.do(chromedp.SendKeys(search, kb.Escape))
}

// TestNesting: a definition is opened level by level down to a field of its innermost one.
func TestNesting(t *testing.T) {
	_, b := start(t)
	const part = "tag/containers/operation/create_container"
	b.do(chromedp.Evaluate[chromedp.Void]("document.getElementById(`" + part + "`).scrollIntoView()"))
	seen := map[string]int{} // the inner of two fields with one name comes after the outer
	for _, field := range []string{"mount", "attach", "attach", "loopback"} {
		button := fmt.Sprintf("document.querySelectorAll(`[data-section-id='%s'] button[aria-label='expand %s']`)[%d]", part, field, seen[field])
		seen[field]++
		b.until("there is a "+field+" to open", "%s !== undefined", button)
		b.do(chromedp.Evaluate[chromedp.Void](button + ".click()"))
	}
	b.until("the innermost fields are shown", "document.querySelector(`[data-section-id='%s']`).innerText.includes('GPT or MBR')", part)
	b.picture("opened")
}

// TestExample: the example of an answer is there to read, down to its innermost object.
func TestExample(t *testing.T) {
	_, b := start(t)
	const part = "tag/containers/operation/create_container"
	b.do(chromedp.Navigate(value[string](b, "location.href.split('#')[0]") + "#" + part))
	b.inView(part)
	b.picture("example")
	text := value[string](b, "Array.from(document.querySelectorAll(`[data-section-id='%s'] .redoc-json`)).map(e => e.innerText).join('\\n')", part)
	for _, want := range []string{`"lower"`, `"device_file"`, `"loopback"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the examples do not hold %s:\n%s", want, text)
		}
	}
}

// TestErrorsLeadToTheirSections: the address that an error answer points to shows the section about it.
func TestErrorsLeadToTheirSections(t *testing.T) {
	d, b := start(t)
	var refused struct{ See string }
	d.TCP(t).Must(t, http.StatusNotFound, http.MethodGet, "/container?name=nobody", nil, &refused)
	b.do(chromedp.Navigate("about:blank"))
	b.guide("http://" + d.Address + refused.See)
	_, section, _ := strings.Cut(refused.See, "#")
	b.inView(section)
	b.picture("404")
	if text := value[string](b, "document.getElementById(%q).innerText", section); !strings.HasPrefix(text, "404") {
		t.Errorf("the section is %q", text)
	}
}

// TestWidths: on no screen does the page have to be moved sideways.
func TestWidths(t *testing.T) {
	_, b := start(t)
	const narrow = "{ const all = [...document.querySelectorAll('#page *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('pre, table, .redoc-json, [data-role]')); return all.slice(0, 3).map(e => e.outerHTML.slice(0, 200)) }"
	for name, screen := range map[string]struct {
		width, height int64
		phone         bool
	}{"phone": {360, 780, true}, "tablet": {820, 1180, true}, "desktop": {1280, 800, false}, "wide": {1920, 1080, false}} {
		b.size(screen.width, screen.height, screen.phone)
		b.until(name+" is drawn", "innerWidth === %d", screen.width)
		for _, place := range []string{"section/Reading-this-page", "section/Concepts/States-of-a-container", "section/Errors/409-conflict", "tag/containers/operation/set_container_state"} {
			b.do(chromedp.Evaluate[chromedp.Void](fmt.Sprintf("document.getElementById(%q)?.scrollIntoView()", place)))
			if width := value[int64](b, "document.scrollingElement.scrollWidth"); width > screen.width {
				t.Errorf("%s: the page is %d wide, the screen %d: %q", name, width, screen.width, value[[]string](b, narrow))
			}
			b.picture(name + "-" + filepath.Base(place))
		}
	}
}

// TestFile: the page works as a file, too.
func TestFile(t *testing.T) {
	cut(t)
	dir := t.TempDir()
	text, err := os.ReadFile(filepath.Join(harness.Root(), "docs/api/index.html"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "page.html"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	b := open(t, "file://"+dir)
	b.show("file://" + dir + "/page.html#section/Errors/409-conflict")
	b.inView("section/Errors/409-conflict")
}

// TestFaultsAreSeen: what these tests say of every page, that it asks for nothing and has no error, they would notice.
func TestFaultsAreSeen(t *testing.T) {
	cut(t)
	dir := t.TempDir()
	const bad = `<script>console.error("one"); fetch("http://example.org/two").catch(() => 0); setTimeout(() => { document.title = "done"; throw "three" })</script>`
	if err := os.WriteFile(filepath.Join(dir, "bad.html"), []byte(bad), 0o644); err != nil {
		t.Fatal(err)
	}
	b := open(t, "file://"+dir)
	b.do(chromedp.Navigate("file://" + dir + "/bad.html"))
	seen := func() string {
		b.mu.Lock()
		defer b.mu.Unlock()
		return strings.Join(b.faults, "\n")
	}
	for _, want := range []string{"one", "http://example.org/two", "three"} {
		testkit.Eventually(t, want+" is noticed", func() bool { return strings.Contains(seen(), want) })
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = slices.Delete(b.faults, 0, len(b.faults))
}
