package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	httptransport "github.com/go-openapi/runtime/client"
	"github.com/go-openapi/strfmt"
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/client"
	"github.com/kraken-hpc/imageapi/models"
)

// Client talks to a Daemon over one of its listeners. Every answer it gets is checked against the specification.
type Client struct {
	*client.Imageapi              // typed calls
	HTTP             *http.Client // odd requests; the host in the URL is ignored
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

func (d *Daemon) dialUnix(ctx context.Context, _, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", d.Socket)
}

func (d *Daemon) dialTCP(ctx context.Context, _, _ string) (net.Conn, error) {
	return inNetworkOf(d.PID, func() (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", d.Address) })
}

// inNetworkOf dials in the network namespace of a process, which may be another one than that of the test.
func inNetworkOf(pid int, dial func() (net.Conn, error)) (net.Conn, error) {
	theirs, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	ours, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	if a, err := theirs.Stat(); err == nil {
		if b, err := ours.Stat(); err == nil && os.SameFile(a, b) {
			return dial()
		}
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(theirs.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		conn, err := dial()
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// Unix returns a client of the server's socket.
func (d *Daemon) Unix(t testing.TB) *Client { return newClient(t, d.dialUnix) }

// TCP returns a client of the server's http listener.
func (d *Daemon) TCP(t testing.TB) *Client { return newClient(t, d.dialTCP) }

// Stream sends a GET over the server's socket whose answer is read as it comes, unchecked, until ctx ends.
func (d *Daemon) Stream(ctx context.Context, path string, header http.Header) (*http.Response, error) {
	return d.Page(ctx, client.DefaultBasePath+path, header)
}

// Page is Stream for a path that may be outside of the API, such as /metrics.
func (d *Daemon) Page(ctx context.Context, path string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://imageapi"+path, nil)
	if err != nil {
		return nil, err
	}
	for key, values := range header {
		req.Header[key] = values
	}
	return (&http.Transport{DialContext: d.dialUnix, DisableKeepAlives: true}).RoundTrip(req)
}

// base is where the API is; the dialer ignores the host.
const base = "http://localhost" + client.DefaultBasePath

// answerTime is far more than the server takes for its longest answer. It fails a test that would hang for ever.
const answerTime = 90 * time.Second

func newClient(t testing.TB, dial dialer) *Client {
	// No connection is kept, so that the server's descriptors can be compared.
	plain := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	checked := &http.Client{Transport: checker{t, plain}, Timeout: answerTime}
	api := client.New(httptransport.NewWithClient("localhost", client.DefaultBasePath, []string{"http"}, checked), strfmt.Default)
	return &Client{Imageapi: api, HTTP: checked}
}

// Answer is a response that has been read.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Message returns the text of an error answer.
func (a Answer) Message() string {
	var e models.Error
	if json.Unmarshal(a.Body, &e) != nil || e.Message == nil {
		return ""
	}
	return *e.Message
}

// Do sends a request with a JSON content type. body is a string or []byte that is sent as it stands, nil for none,
// or anything else, which is sent as JSON. An error is a fault of the connection.
func (c *Client) Do(ctx context.Context, method, path string, body any) (Answer, error) {
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(b)
	case []byte:
		reader = bytes.NewReader(b)
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return Answer{}, err
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, reader)
	if err != nil {
		return Answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	return c.Send(req)
}

// Send sends a request as it stands.
func (c *Client) Send(req *http.Request) (Answer, error) {
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, resp.Header, data}, err
}

// Must is Do with an expected status; it decodes the answer into out unless out is nil.
func (c *Client) Must(t testing.TB, want int, method, path string, body, out any) Answer {
	t.Helper()
	a, err := c.Do(t.Context(), method, path, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	if a.Status != want {
		t.Fatalf("%s %s: status %d, want %d: %s", method, path, a.Status, want, a.Body)
	}
	if out != nil {
		if err := json.Unmarshal(a.Body, out); err != nil {
			t.Fatalf("%s %s: %v: %s", method, path, err, a.Body)
		}
	}
	return a
}

// checker holds every answer against the specification.
type checker struct {
	t    testing.TB
	next http.RoundTripper
}

func (c checker) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(data))
	if err := valid(req, resp, data); err != nil {
		c.t.Errorf("%s %s: the answer %d %.2000s breaks the specification: %v", req.Method, req.URL.RequestURI(), resp.StatusCode, data, err)
	}
	return resp, nil
}

type validated interface {
	Validate(formats strfmt.Registry) error
}

func valid(req *http.Request, resp *http.Response, data []byte) error {
	resource := strings.TrimPrefix(req.URL.Path, client.DefaultBasePath)
	kind := resp.Header.Get("Content-Type")
	if resource == "/container/log" && resp.StatusCode == http.StatusOK && (kind == "text/plain; charset=utf-8" || kind == "application/octet-stream") {
		return nil // it may hold anything
	}
	if !strings.HasPrefix(kind, "application/json") {
		return fmt.Errorf("content type %q", kind)
	}
	want := http.StatusOK
	if req.Method == http.MethodPost && strings.Count(resource, "/") == 1 {
		want = http.StatusCreated // what creates an object
	}
	later := resource == "/container/replace" && resp.StatusCode == http.StatusAccepted
	if resp.StatusCode < 300 && resp.StatusCode != want && !later {
		return fmt.Errorf("status %d, want %d", resp.StatusCode, want)
	}
	if req.Method == http.MethodHead {
		return nil
	}
	if resp.StatusCode >= 300 {
		return validError(resp.StatusCode, data)
	}
	if strings.HasSuffix(resource, "/plan") {
		return validObject(new(models.Plan), data)
	}
	var one func() validated
	switch resource {
	case "/attach":
		one = func() validated { return new(models.Attach) }
	case "/mount":
		one = func() validated { return new(models.Mount) }
	case "/container":
		one = func() validated { return new(models.Container) }
	case "/container/replace":
		return validObject(new(models.ContainerReplaced), data)
	case "/container/wait", "/container/rollback":
		return validObject(new(models.Container), data)
	case "/info":
		return validObject(new(models.Info), data)
	case "/container/exec":
		return validObject(new(models.ContainerResult), data)
	default:
		return nil // outside of the specification, such as /swagger.json
	}
	if req.Method != http.MethodGet {
		return validObject(one(), data)
	}
	var list []json.RawMessage
	if err := json.Unmarshal(data, &list); err != nil {
		return err
	}
	if list == nil {
		return fmt.Errorf("the list is null")
	}
	for _, item := range list {
		if err := validObject(one(), item); err != nil {
			return err
		}
	}
	return nil
}

func validObject(into validated, data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	return into.Validate(strfmt.Default)
}

func validError(status int, data []byte) error {
	var e models.Error
	if err := validObject(&e, data); err != nil {
		return err
	}
	if e.Code != int64(status) {
		return fmt.Errorf("code %d, status %d", e.Code, status)
	}
	if *e.Message == "" {
		return fmt.Errorf("no message")
	}
	if section := fmt.Sprintf("%s/docs/errors#%d-", client.DefaultBasePath, status); !strings.HasPrefix(e.See, section) {
		return fmt.Errorf("see is %q, not %s", e.See, section)
	}
	if e.Type == "" {
		return fmt.Errorf("the error has no type")
	}
	return nil
}
