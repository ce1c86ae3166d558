package browser

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/kraken-hpc/imageapi/test/harness"
)

// guide opens a page of the site and waits until its script has made it one that reacts.
func (b *browser) guide(address string) {
	b.t.Helper()
	b.do(chromedp.Navigate(address))
	b.until("the guide is shown", `document.readyState === "complete" && document.querySelector(".vp-doc h1") !== null && document.querySelector("#app").__vue_app__ !== undefined`)
}

// startGuides starts a server and opens its guides in a browser.
func startGuides(t *testing.T) (*harness.Daemon, *browser) {
	t.Helper()
	cut(t)
	d := harness.Start(t)
	b := open(t, "http://"+d.Address)
	b.size(1400, 900, false)
	b.guide("http://" + d.Address + guidesPath)
	return d, b
}

// get returns a page of the site as its server sends it.
func page(t *testing.T, d *harness.Daemon, path string) (status int, body string) {
	t.Helper()
	answer, err := http.Get("http://" + d.Address + path)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

var (
	reference = regexp.MustCompile(`\s(?:href|src)="([^"]*)"`)
	anchor    = regexp.MustCompile(`\sid="([^"]*)"`)
)

// site reads every page that a link of the site leads to. It fails the test for a link or an anchor that leads nowhere.
func site(t *testing.T, d *harness.Daemon) (pages []string) {
	t.Helper()
	type found struct{ from, to, anchor string }
	var links []found
	anchors := map[string][]string{}
	for queue := []string{guidesPath}; len(queue) > 0; queue = queue[1:] {
		path := queue[0]
		if _, seen := anchors[path]; seen {
			continue
		}
		status, body := page(t, d, path)
		anchors[path] = []string{""}
		if status != http.StatusOK {
			t.Errorf("%s: %d", path, status)
			continue
		}
		for _, match := range anchor.FindAllStringSubmatch(body, -1) {
			anchors[path] = append(anchors[path], match[1])
		}
		if path == docsPath || !strings.Contains(body, "<!DOCTYPE html>") {
			continue // of the reference the other tests take care
		}
		pages = append(pages, path)
		for _, match := range reference.FindAllStringSubmatch(body, -1) {
			to, err := url.Parse(match[1])
			if err != nil {
				t.Errorf("%s has the link %q", path, match[1])
				continue
			}
			if to.Host != "" || to.Scheme != "" {
				continue // another host, for the reader to open
			}
			to = (&url.URL{Path: path}).ResolveReference(to)
			links = append(links, found{path, to.Path, to.Fragment})
			queue = append(queue, to.Path)
		}
	}
	for _, l := range links {
		if l.to != docsPath && !slices.Contains(anchors[l.to], l.anchor) {
			t.Errorf("%s links to %s, which has no section %q", l.from, l.to, l.anchor)
		}
	}
	if len(pages) < 40 {
		t.Fatalf("the site has %d pages", len(pages))
	}
	return pages
}

// TestGuides: every page can be read on a phone and on a large screen without moving it sideways, and no link of it is broken.
func TestGuides(t *testing.T) {
	d, b := startGuides(t)
	b.picture("index")
	for _, path := range site(t, d) {
		b.size(1400, 900, false)
		b.guide("http://" + d.Address + path)
		for _, width := range []int64{1400, 420} {
			b.size(width, 900, false)
			b.until("the window has the size", "innerWidth === %d", width)
			if is := value[int64](b, "document.scrollingElement.scrollWidth"); is > width {
				const wide = "[...document.querySelectorAll('#app *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('pre, table')).slice(0, 3).map(e => e.outerHTML.slice(0, 200)).join()"
				t.Errorf("%s is %d wide on a screen of %d: %s", path, is, width, value[string](b, wide))
			}
		}
	}
}

// TestGuideSearch: the search finds the page that is about a word.
func TestGuideSearch(t *testing.T) {
	d, b := startGuides(t)
	for _, c := range []struct{ typed, path, title string }{
		{"restart policy", "containers", "Restart policy"},
		{"nfs4", "mounts/nfs", ""},
		{"busy", "errors", "busy"},
		{"readPartitions", "attachments/loopback", ""},
		{"verity", "attachments/verity", ""},
		{"iscsi", "", "iscsi"},
		{"roll back", "update", ""},
		{"stopping", "containers", "Stopping"},
		{"labels", "concepts", "Labels"},
		{"exit status", "containers", "Exit status"},
		{"audit", "audit", ""},
		{"alerts", "metrics", ""},
		{"kraken", "kraken", ""},
		{"initramfs", "initramfs", ""},
		{"systemd", "", "systemd"},
		{"overlay", "mounts/overlay", ""},
		{"dry run", "", "dry run"},
		{"certificate", "", "certificate"},
		{"limits", "", "limits"},
		{"malformed", "errors", "400"},
	} {
		b.guide("http://" + d.Address + guidesPath)
		b.do(chromedp.Click(chromedp.CSS("#local-search button")))
		const input = chromedp.CSS("#localsearch-input")
		b.do(chromedp.WaitVisible(input), chromedp.SendKeys(input, c.typed))
		const first = `document.querySelector("#localsearch-list a.result")`
		b.until("something is found for "+c.typed, first+` !== null && document.querySelector("#localsearch-input").value === %q`, c.typed)
		b.until("the search for "+c.typed+" has settled", `{
			const now = [...document.querySelectorAll("#localsearch-list a.result")].map(e => e.href).join()
			const before = window.found; window.found = now; return now !== "" && now === before }`)
		href, text := value[string](b, first+".pathname"), value[string](b, first+".innerText")
		if !strings.HasSuffix(href, c.path) || !strings.Contains(strings.ToLower(text), strings.ToLower(c.title)) {
			t.Errorf("%q finds %s: %q first", c.typed, href, text)
		}
	}
	b.picture("found")
	b.do(chromedp.SendKeys(chromedp.CSS("#localsearch-input"), kb.Enter)) // the keyboard opens the first
	b.until("the first is opened", "location.pathname.endsWith('/errors')")
}

// TestGuideCopy: the button of a block copies the commands, without prompts and output.
func TestGuideCopy(t *testing.T) {
	d, b := startGuides(t)
	b.guide("http://" + d.Address + guidesPath + "containers")
	b.do(chromedp.Evaluate[chromedp.Void]("navigator.clipboard.writeText = text => { window.copied = text; return Promise.resolve() }"))
	b.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("div.language-console button.copy").click()`))
	b.until("it is copied", "window.copied !== undefined")
	text := value[string](b, "window.copied")
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if strings.HasPrefix(line, "# ") || strings.HasPrefix(line, "{") || line == "" {
			t.Errorf("the button copies the line %q", line)
		}
	}
	if !strings.Contains(text, "imageapi run docs/examples/") {
		t.Errorf("the button copies %q", text)
	}
}

// TestGuideNavigation: the sidebar has the pages in the order of the index, and the page's foot leads to the next. The colours of
// the night are one click away.
func TestGuideNavigation(t *testing.T) {
	d, b := startGuides(t)
	b.guide("http://" + d.Address + guidesPath + "introduction")
	links := value[[]string](b, `[...document.querySelectorAll(".VPSidebar a")].map(e => e.pathname)`)
	if len(links) < 40 {
		t.Errorf("the sidebar has %d links", len(links))
	}
	for _, step := range []string{"next", "next", "prev"} {
		target := value[string](b, "document.querySelector('.pager-link.%s').pathname", step)
		before := value[string](b, "document.querySelector('.vp-doc h1').innerText")
		b.do(chromedp.Evaluate[chromedp.Void](fmt.Sprintf("document.querySelector('.pager-link.%s').click()", step)))
		b.until(target+" is shown", "location.pathname === %q && document.querySelector('.vp-doc h1')?.innerText !== %q", target, before)
	}
	if at := value[string](b, "location.pathname"); at != links[1] {
		t.Errorf("two pages on and one back is %s, the sidebar has %s", at, links[1])
	}
	b.do(chromedp.Evaluate[chromedp.Void](`document.querySelector(".VPSwitchAppearance").click()`))
	b.until("the page is dark", "document.documentElement.classList.contains('dark')")
	b.picture("dark")
}
