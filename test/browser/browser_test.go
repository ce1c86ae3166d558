package browser

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// timeout bounds one thing that the browser is asked for. It is long for machines that do much else.
const timeout = time.Minute

// A browser is one window of a headless Chromium with a new profile, and what it did that it should not.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu     sync.Mutex
	faults []string // console errors, exceptions, and requests to elsewhere
}

// open starts a browser that may load pages of one origin alone, such as http://127.0.0.1:8080 or file://. After the
// test it must have made no other request, and no error.
func open(t *testing.T, origin string) *browser {
	t.Helper()
	testkit.Root(t)
	testkit.Need(t, "chromium")
	options := []chromedp.ExecAllocatorOption{
		chromedp.NoFirstRun, chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.ExecPath("chromium"), chromedp.WSURLReadTimeout(timeout),
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	b := &browser{t: t}
	var cancel context.CancelFunc
	b.ctx, cancel = chromedp.NewContext(allocator, chromedp.WithListener(func(event any) { b.note(event, origin) }))
	t.Cleanup(cancel)
	// The first call starts the browser, which lives as long as the context of that call.
	if err := chromedp.Do(b.ctx, call(network.Enable, network.EnableParams{}), call(log.Enable, cdp.Empty{})); err != nil {
		t.Fatalf("start the browser: %v", err)
	}
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, fault := range b.faults {
			t.Error(fault)
		}
	})
	return b
}

// call is an action that is a command of the DevTools protocol.
func call[P, R any](command cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, command, params)
		return chromedp.Void{}, err
	}
}

// note remembers an event that shall not be.
func (b *browser) note(event any, origin string) {
	var fault string
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		if !within(e.Request.URL, origin) {
			fault = fmt.Sprintf("the page asks for %.200s", e.Request.URL)
		}
	case *runtime.EventExceptionThrown:
		fault = "exception: " + exception(e.ExceptionDetails)
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeAssert {
			fault = "console: " + arguments(e.Args)
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError {
			fault = fmt.Sprintf("log: %s %s", e.Entry.Text, e.Entry.URL)
		}
	}
	if fault != "" {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.faults = append(b.faults, fault)
	}
}

// within tells whether an address is of an origin, or of what the page holds in itself.
func within(address, origin string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	return slices.Contains([]string{"data", "blob"}, u.Scheme) || strings.HasPrefix(address, origin+"/")
}

func exception(e *runtime.ExceptionDetails) string {
	if e.Exception == nil {
		return e.Text
	}
	return e.Text + " " + arguments([]*runtime.RemoteObject{e.Exception})
}

func arguments(all []*runtime.RemoteObject) string {
	var texts []string
	for _, one := range all {
		texts = append(texts, string(one.Value)+one.Description)
	}
	return strings.Join(texts, " ")
}

// do has the browser act, and fails the test if it can't in time.
func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, timeout)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatalf("the browser can't do that: %v", err)
	}
}

// get has the browser act, and returns what comes of it.
func get[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, timeout)
	defer cancel()
	out, err := chromedp.Run(ctx, action)
	if err != nil {
		b.t.Fatalf("the browser can't do that: %v", err)
	}
	return out
}

// value evaluates an expression, or a block that returns something, in the page.
func value[T any](b *browser, expression string, args ...any) T {
	b.t.Helper()
	return get(b, chromedp.Evaluate[T]("(() => "+fmt.Sprintf(expression, args...)+")()"))
}

// until waits until an expression, or a block that returns something, is true in the page.
func (b *browser) until(what, expression string, args ...any) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, timeout)
	defer cancel()
	poll := chromedp.Poll[bool]("(() => "+fmt.Sprintf(expression, args...)+")()", chromedp.WithPollingTimeout(timeout))
	_, err := chromedp.Run(ctx, poll)
	for err != nil && ctx.Err() == nil && strings.Contains(err.Error(), "context with specified id") {
		_, err = chromedp.Run(ctx, poll) // the page that was asked went while the next one was loaded
	}
	if err != nil {
		b.picture("failed")
		b.t.Fatalf("%s: %v", what, err)
	}
}

// show opens an address and waits until the page is drawn.
func (b *browser) show(address string) {
	b.t.Helper()
	b.do(chromedp.Navigate(address))
	b.until("the page is drawn", `document.querySelector("input.search-input") !== null && document.querySelectorAll("[data-section-id]").length > 20`)
}

// inView waits until a part of the page begins in the window.
func (b *browser) inView(section string) {
	b.t.Helper()
	b.until(section+" is in view", "{ const box = document.getElementById(%q)?.getBoundingClientRect(); return !!box && box.top < innerHeight / 2 && box.bottom > 0 }", section)
}

// size makes the window another one. A phone's page is drawn for fingers, too.
func (b *browser) size(width, height int64, phone bool) {
	b.t.Helper()
	b.do(call(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: phone}))
}

// picture keeps what the window shows in bin/browser, for people to look at.
func (b *browser) picture(name string) {
	b.t.Helper()
	png := get(b, chromedp.CaptureScreenshot())
	dir := filepath.Join(harness.Root(), "bin/browser")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, b.t.Name()+"-"+name+".png"), png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}
