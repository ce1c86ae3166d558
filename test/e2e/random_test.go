package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// Requests at random, made from the specification and then spoilt, find no crash, no status 500, and nothing that grows: 10,000
// of them at full length.
func TestRandomRequests(t *testing.T) {
	t.Setenv("GODEBUG", "schedtrace=500,scheddetail=1") // the server tells its goroutines
	n := newNode(t, "--stop-timeout", "200ms", "--create-timeout", "2s", "--delete-timeout", "2s", "--read-timeout", "300ms", "--header-timeout", "300ms")
	r := &randomClient{node: n, generator: newGenerator(t, n), tally: map[int]int{}}
	r.warmUp(t)
	before := r.footprint(t)
	end := time.Now().Add(time.Duration(testkit.Rounds(20, 3000)) * time.Second)
	try(t, func(rt *rapid.T) {
		r.ids = []int64{int64(r.mount(t, squash(r.image)).ID), int64(r.create(t, r.simple("base", "/bin/true")).ID)}
		for range 34 {
			if time.Now().Before(end) {
				r.step(rt)
			}
		}
		r.clear(t)
	})
	t.Logf("%d requests: %v", r.sent, r.tally)
	for _, status := range []int{200, 201, 400, 403, 404, 409, 415, 422} {
		if r.sent > 1000 && r.tally[status] == 0 {
			t.Errorf("status %d never happened: the requests are not what they should be", status)
		}
	}
	r.compare(t, before)
}

// randomClient sends what its generator makes up.
type randomClient struct {
	*node
	*generator
	sent  int
	tally map[int]int // answers by status
}

// warmUp sends some requests of each kind, after which the server has what it keeps.
func (r *randomClient) warmUp(t *testing.T) {
	t.Helper()
	c := r.create(t, r.simple("warm", forever))
	setState(t, r.node, http.StatusOK, c.ID, "running")
	for range 300 {
		r.list(t, "/container")
	}
	setState(t, r.node, http.StatusOK, c.ID, "exited")
	r.reaches(t, c.ID, "exited")
	r.clear(t)
}

// step sends one request and judges the answer.
func (r *randomClient) step(t *rapid.T) {
	// What rapid draws by itself is mostly extreme; it draws what all else is drawn with.
	d := rand.New(rand.NewChaCha8([32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "seed"))))
	request := r.request(d)
	network, address := "unix", r.Socket
	if oneIn(d, 8) {
		network, address = "tcp", r.Address
	}
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatalf("the server is gone: %v", err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patienceWith(request)))
	r.sent++
	_, _ = conn.Write(request)
	if oneIn(d, 20) {
		return // without waiting for the answer
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		r.tally[0]++ // none, as for what is not whole
		return
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(answer.Body)
	r.tally[answer.StatusCode]++
	r.remember(answer.StatusCode, body)
	r.judge(t, request, answer, body)
}

// remember notes the objects that were made.
func (r *randomClient) remember(status int, body []byte) {
	var made struct{ ID int64 }
	if status == http.StatusCreated && json.Unmarshal(body, &made) == nil {
		r.ids = append(r.ids, made.ID)
	}
}

// patienceWith is how long a client waits for the answer to a request: some wait for what never comes.
func patienceWith(request []byte) time.Duration {
	if bytes.Contains(request, []byte("/container/wait")) || bytes.Contains(request, []byte("follow=")) || bytes.Contains(request, []byte("/events")) {
		return 100 * time.Millisecond
	}
	return 5 * time.Second
}

func (r *randomClient) judge(t *rapid.T, request []byte, answer *http.Response, body []byte) {
	fail := func(format string, args ...any) {
		t.Fatalf("%s\n%.4000q\nis answered %d %.1000q", fmt.Sprintf(format, args...), request, answer.StatusCode, body)
	}
	switch answer.StatusCode {
	case 501, 502, 504:
	default:
		if answer.StatusCode >= 500 {
			fail("a fault of the server")
		}
	}
	if answer.StatusCode < 400 || answer.Header.Get("X-Request-Id") == "" || strings.HasPrefix(string(request), "HEAD") {
		return // net/http answers in plain text what it can't read
	}
	var said struct {
		Code    int
		Message string
	}
	if err := json.Unmarshal(body, &said); err != nil || said.Code != answer.StatusCode || said.Message == "" {
		fail("not an error as the specification wants it")
	}
}

// footprint is what a server that rests takes.
type footprint struct{ goroutines, memory int }

// memorySlack is by how much a Go program's memory differs between two times at which it has the same in it, in KiB.
const memorySlack = 48 << 10

func (r *randomClient) footprint(t *testing.T) footprint {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.PID))
	must(t, err)
	memory := regexp.MustCompile(`RssAnon:\s+(\d+) kB`).FindSubmatch(status)
	if memory == nil {
		t.Fatalf("the kernel does not tell the memory of the server:\n%s", status)
	}
	kib, err := strconv.Atoi(string(memory[1]))
	must(t, err)
	return footprint{goroutines: r.goroutines(t), memory: kib}
}

// goroutines waits for the server to tell what it does once more, and counts those that are alive.
func (r *randomClient) goroutines(t *testing.T) int {
	t.Helper()
	const head, dead = "SCHED ", "status=6("
	since := len(r.Log())
	var parts []string
	testkit.Eventually(t, "the server tells its goroutines", func() bool {
		parts = strings.Split(r.Log()[since:], head)
		return len(parts) > 2
	})
	alive := 0
	for line := range strings.Lines(parts[1]) {
		if strings.HasPrefix(line, "  G") && !strings.Contains(line, dead) {
			alive++
		}
	}
	if alive < 5 {
		t.Fatalf("the server has only %d goroutines:\n%s", alive, parts[1])
	}
	return alive
}

// compare fails the test if the server does not come back to where it was.
func (r *randomClient) compare(t *testing.T, before footprint) {
	t.Helper()
	var now footprint
	if !testkit.Settles(func() bool { now = r.footprint(t); return now.goroutines <= before.goroutines+2 }) {
		t.Errorf("%d goroutines became %d", before.goroutines, now.goroutines)
	}
	t.Logf("before %+v, after %+v", before, now)
	if now.memory > before.memory+memorySlack {
		t.Errorf("%d KiB of memory became %d", before.memory, now.memory)
	}
}
