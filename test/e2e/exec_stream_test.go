package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// streamPath is where a script of a container's shell is run with streams.
func streamPath(id models.ID, script, more string) string {
	return fmt.Sprintf("/container/exec?id=%d&%s%s", id, url.Values{"args": {"/bin/sh", "-c", script}}.Encode(), more)
}

// opens upgrades a request that must be upgraded.
func (n *node) opens(t testing.TB, path string) *wsSession {
	t.Helper()
	s, refused, err := n.stream(t.Context(), path, nil)
	must(t, err)
	if s == nil {
		t.Fatalf("status %d: %s", refused.Status, refused.Body)
	}
	t.Cleanup(func() { s.Close() })
	return s.within(answerTime)
}

const answerTime = 90 * time.Second

// ends returns the result of a session, which must come to one.
func (s *wsSession) ends(t testing.TB) models.ContainerResult {
	t.Helper()
	a, err := s.rest()
	must(t, err)
	if a.Status != http.StatusOK {
		t.Fatalf("status %d: %s", a.Status, a.Body)
	}
	var r models.ContainerResult
	decode(t, a.Body, &r)
	return r
}

// Bytes pass unchanged both ways, far more of them than a request returns, and the end of the input is no end of the output.
func TestStreamBinary(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, start(forever, n.root()))
	s := n.opens(t, streamPath(c.ID, "cat; echo the end; cat >&2; exit 9", "&stdin=true"))
	given := make([]byte, 5<<20)
	_, _ = rand.Read(given)
	go func() {
		for rest := given; len(rest) > 0; rest = rest[min(len(rest), 100_000):] {
			_ = s.says(wsStdin, string(rest[:min(len(rest), 100_000)]))
		}
		_ = s.says(wsClose, "\x00")
		_ = s.says(wsStdin, "too late")
	}()
	var out bytes.Buffer
	for {
		channel, data, err := s.next()
		must(t, err)
		if channel == wsStatus {
			if !strings.Contains(string(data), `{"reason":"ExitCode","message":"9"}`) {
				t.Errorf("the status is %s", data)
			}
			break
		}
		if channel != wsStdout {
			t.Fatalf("channel %d: %q", channel, data)
		}
		out.Write(data)
	}
	if want := string(given) + "the end\n"; out.String() != want {
		t.Errorf("%d bytes came back, of %d", out.Len(), len(want))
	}
	if _, _, err := s.next(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		t.Errorf("it ends by %v", err)
	}
}

// A request gives the command its input, of text or of bytes.
func TestExecInput(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, start(forever, n.root()))
	if r := n.exec(t, c.ID, &models.ContainerCommand{Args: []string{"cat"}, Stdin: "one\ntwo\n"}); r.Stdout != "one\ntwo\n" || r.StdoutBase64 != nil {
		t.Errorf("text: %s", show(r))
	}
	given := make([]byte, 300_000) // more than a pipe holds
	_, _ = rand.Read(given)
	if r := n.exec(t, c.ID, &models.ContainerCommand{Args: []string{"cat"}, StdinBase64: given}); !bytes.Equal(r.StdoutBase64, given) {
		t.Errorf("%d bytes came back, of %d", len(r.StdoutBase64), len(given))
	}
	// A command that does not read it ends all the same.
	if r := n.exec(t, c.ID, &models.ContainerCommand{Args: []string{"true"}, StdinBase64: given}); *r.ExitCode != 0 {
		t.Errorf("unread: %s", show(r))
	}
}

// A client that does not read makes the command wait, and costs the server next to no memory, however much there is to pass on.
func TestStreamBackPressure(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--create-timeout", "2s", "--delete-timeout", "2s", "--write-timeout", "2100ms", "--read-timeout", "1s") // which are not for streams
	c := n.create(t, start(forever, n.root()))
	size := int64(testkit.Rounds(64, 1024)) << 20
	n.opens(t, streamPath(c.ID, "true", "")).ends(t)
	before := n.memory(t)
	s := n.opens(t, streamPath(c.ID, "cat", "&stdin=true")).within(10 * time.Minute)
	var sent atomic.Int64
	sum := make(chan string, 1)
	go func() {
		digest, piece := sha256.New(), make([]byte, 1<<16)
		for sent.Load() < size {
			_, _ = rand.Read(piece)
			digest.Write(piece)
			if s.says(wsStdin, string(piece)) != nil {
				break
			}
			sent.Add(int64(len(piece)))
		}
		_ = s.says(wsClose, "\x00")
		sum <- fmt.Sprintf("%x", digest.Sum(nil))
	}()
	testkit.Eventually(t, "nothing moves any more", func() bool {
		was := sent.Load()
		<-time.After(300 * time.Millisecond)
		return was > 0 && sent.Load() == was
	})
	stuck := sent.Load()
	if stuck > 8<<20 {
		t.Errorf("a client that does not read can send %d bytes", stuck)
	}
	most := n.memory(t)
	end := time.After(time.Duration(testkit.Rounds(1, 30)) * time.Second)
	<-end // the pause of the reader is what is tested
	most = max(most, n.memory(t))
	got, digest := int64(0), sha256.New()
	for {
		channel, data, err := s.next()
		must(t, err)
		if channel == wsStatus {
			break
		}
		if got%(8<<20)+int64(len(data)) >= 8<<20 {
			most = max(most, n.memory(t))
		}
		got += int64(len(data))
		digest.Write(data)
	}
	if want := <-sum; got != size || sumOf(digest) != want {
		t.Errorf("%d of %d bytes came back, or others", got, size)
	}
	if more := most - before; more > 16<<20 {
		t.Errorf("it took %d KiB more memory", more>>10)
	}
}

func sumOf(h hash.Hash) string { return fmt.Sprintf("%x", h.Sum(nil)) }

// memory is the proportional set size of the server and of all that it started.
func (n *node) memory(t testing.TB) (bytes int64) {
	t.Helper()
	for _, pid := range append(children(n.PID), n.PID) {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid)) // it may have ended
		for line := range strings.Lines(string(text)) {
			var kib int64
			if _, err := fmt.Sscanf(line, "Pss: %d kB", &kib); err == nil {
				bytes += kib << 10
			}
		}
	}
	return bytes
}

func children(pid int) (all []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for _, word := range strings.Fields(string(text)) {
			var child int
			if _, err := fmt.Sscan(word, &child); err == nil {
				all = append(append(all, child), children(child)...)
			}
		}
	}
	return all
}

// A terminal is one of the container's own, and behaves as one: size, control characters, end of input.
func TestStreamTerminal(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, start(forever, n.root()))
	s := n.opens(t, fmt.Sprintf("/container/exec?id=%d&tty=true&stdin=true&args=/bin/sh", c.ID))
	shown := ""
	until := func(text string) {
		t.Helper()
		for !strings.Contains(shown, text) {
			channel, data, err := s.next()
			if err != nil || channel != wsStdout {
				t.Fatalf("channel %d, %v; until then: %q", channel, err, shown)
			}
			shown += string(data)
		}
		_, shown, _ = strings.Cut(shown, text)
	}
	must(t, s.says(wsResize, `{"Width":101,"Height":33}`))
	must(t, s.says(wsStdin, "tty; stty size; id -u\n"))
	until("/dev/pts/")
	until("33 101")
	must(t, s.says(wsStdin, "trap 'echo resi''zed' WINCH; echo rea''dy\n"))
	until("ready")
	must(t, s.says(wsResize, `{"Width":55,"Height":22}`))
	must(t, s.says(wsStdin, "stty size\n"))
	until("22 55")
	must(t, s.says(wsStdin, "sh -c 'echo slee\"\"ping; exec sleep 1000'\n"))
	until("sleeping")
	must(t, s.says(wsStdin, "\x03"))
	must(t, s.says(wsStdin, "echo inter''rupted $?\n"))
	until("interrupted 130")
	must(t, s.says(wsStdin, "exit 7\n"))
	if r := s.ends(t); r.ExitCode == nil || *r.ExitCode != 7 {
		t.Errorf("it ends as %s", show(r))
	}
	// The end of the input is what control-D is.
	s = n.opens(t, fmt.Sprintf("/container/exec?id=%d&tty=true&stdin=true&args=cat", c.ID))
	must(t, s.says(wsStdin, "a line\n"))
	must(t, s.says(wsClose, "\x00"))
	if r := s.ends(t); r.ExitCode == nil || *r.ExitCode != 0 || r.Stdout != "a line\r\na line\r\n" {
		t.Errorf("cat in a terminal: %s", show(r))
	}
	// All of the output comes, and a user has the terminal.
	s = n.opens(t, fmt.Sprintf("/container/exec?id=%d&tty=true&user=65534&%s", c.ID, url.Values{"args": {"sh", "-c", "seq 1 20000; echo x > $(tty) && echo last"}}.Encode()))
	if r := s.ends(t); !strings.HasSuffix(r.Stdout, "\r\n20000\r\nx\r\nlast\r\n") || !strings.HasPrefix(r.Stdout, "1\r\n2\r\n") {
		t.Errorf("%d bytes: %q", len(r.Stdout), r.Stdout[max(0, len(r.Stdout)-100):])
	}
}

// What an image has in the place of its terminals is not used.
func TestStreamHostileTerminal(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, replace := range []string{
		"umount /dev/pts", "umount /dev/pts; mkfifo /dev/pts/ptmx", "umount /dev/pts; ln -s /dev/null /dev/pts/ptmx", "umount /dev/pts; mknod /dev/pts/ptmx c 5 2",
		"umount /dev/pts; mknod /dev/pts/ptmx c 1 5", "umount /dev/pts; echo > /dev/pts/ptmx", "mount -t tmpfs none /dev/pts; mknod /dev/pts/ptmx c 1 1",
	} {
		c := n.create(t, start(forever, n.root()))
		n.exec(t, c.ID, shell(replace))
		s, a, err := n.stream(t.Context(), streamPath(c.ID, "tty", "&tty=true"), nil)
		must(t, err)
		if s != nil || a.Status != http.StatusUnprocessableEntity || !strings.Contains(a.Message(), "/dev/pts/ptmx") {
			t.Errorf("after %s: status %d: %s", replace, a.Status, a.Body)
		}
		if s != nil {
			s.Close()
		}
		n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
	}
}

// A client that closes the connection has its command told to end, and killed if it does not, with all that it has started; also one whose
// input nobody reads.
func TestStreamHangUp(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for name, test := range map[string]struct {
		script, want string
		flood        bool
	}{
		"ends":       {"trap 'echo hup >> /told; exit' HUP; touch /there; while :; do sleep 0.05; done", "hup\n", false},
		"ignores it": {"trap 'echo hup >> /told' HUP; touch /there; while :; do sleep 0.05; done", "hup\n", false},
		"leaves one": {"(trap 'echo hup >> /told' HUP; touch /there; while :; do sleep 0.05; done) & wait", "hup\n", false},
		"stopped":    {"trap 'echo hup >> /told; exit' HUP; touch /there; kill -STOP $$; while :; do sleep 0.05; done", "hup\n", false},
		"full input": {"trap 'echo hup >> /told; exit' HUP; touch /there; while :; do sleep 0.05; done", "hup\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := n.create(t, start(forever, n.root()))
			s := n.opens(t, streamPath(c.ID, test.script, "&stdin=true"))
			n.shows(t, c.ID, "/there")
			if test.flood {
				_ = s.SetWriteDeadline(time.Now().Add(time.Second))
				for s.says(wsStdin, strings.Repeat("x", 1<<16)) == nil {
				}
			}
			_ = s.UnderlyingConn().Close()
			slowly(t, "its processes are dead", func() bool {
				return !strings.Contains(n.sh(t, c.ID, "ps -o args"), "/told")
			})
			if got := n.sh(t, c.ID, "cat /told"); got != test.want {
				t.Errorf("it was told %q", got)
			}
		})
	}
	n.exec(t, n.create(t, start(forever, n.root())).ID, shell("true"))
}

// A client that does not read keeps neither the stop of the container nor the end of the server waiting.
func TestStreamStuckClient(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, more := range []string{"", "&tty=true"} {
		c := n.create(t, start(forever, n.root()))
		n.opens(t, streamPath(c.ID, "touch /there; exec yes", more))
		n.shows(t, c.ID, "/there")
		setState(t, n, http.StatusOK, c.ID, "exited")
		n.reaches(t, c.ID, models.ContainerStateExited)
		n.remove(t, http.StatusOK, "/container", c.ID)
	}
	c := n.create(t, start(forever, n.root()))
	n.opens(t, streamPath(c.ID, "touch /there; exec yes", ""))
	n.shows(t, c.ID, "/there")
	n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
}

// When the server shuts down, commands may end within its graceful timeout. Then they get SIGHUP, and their clients the reason.
func TestStreamShutdown(t *testing.T) {
	t.Parallel()
	for _, ends := range []bool{true, false} {
		t.Run(fmt.Sprint(ends), func(t *testing.T) {
			t.Parallel()
			grace := "1s"
			if ends {
				grace = "60s"
			}
			n := newRestartable(t, "--graceful-timeout", grace)
			c := n.create(t, start(forever, n.root()))
			s := n.opens(t, streamPath(c.ID, "trap 'exit 5' HUP; echo there; until [ -e /end ]; do sleep 0.05; done; echo more; exit 3", ""))
			_, _, err := s.next()
			must(t, err)
			root := fmt.Sprintf("/proc/%d/root", c.Pid)
			n.Signal(t, syscall.SIGTERM)
			testkit.Eventually(t, "it shuts down", func() bool { return strings.Contains(n.Log(), "shutting down") })
			if ends {
				must(t, os.WriteFile(filepath.Join(root, "end"), nil, 0o600))
			}
			a, err := s.rest()
			must(t, err)
			if ends && !strings.Contains(string(a.Body), `"exit_code":3`) || ends && !strings.Contains(string(a.Body), "more") {
				t.Errorf("it had time: status %d: %s", a.Status, a.Body)
			}
			if !ends && (a.Status != http.StatusServiceUnavailable || !strings.Contains(a.Message(), "shutting down")) {
				t.Errorf("its time was up: status %d: %s", a.Status, a.Body)
			}
			s.Close()
			must(t, n.Wait(t))
			n.Again(t)
		})
	}
}

// upgradePaths are those of operations that are upgraded; all of them are changes.
func upgradePaths(id models.ID) map[string]string {
	return map[string]string{"exec": streamPath(id, "touch /was-here", ""), "attach": fmt.Sprintf("/container/attach?id=%d", id)}
}

// An upgrade is a change: who may not change anything is refused before anything happens.
func TestStreamRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	authority := newAuthority(t, dir)
	port := freePort(t)
	n := newNode(t, "--scheme", "https", "--tls-port", port, "--tls-certificate", authority.server+".crt", "--tls-key", authority.server+".key",
		"--tls-ca", filepath.Join(dir, "ca.crt"), "--read-only-client", "reader")
	c := n.create(t, start(forever, n.root()))
	http1 := &websocket.Dialer{Subprotocols: []string{wsProtocol}}
	https := func(name string) *websocket.Dialer {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
		must(t, err)
		return &websocket.Dialer{Subprotocols: []string{wsProtocol}, TLSClientConfig: &tls.Config{RootCAs: authority.pool, Certificates: []tls.Certificate{pair}}}
	}
	for operation, path := range upgradePaths(c.ID) {
		plain, secure := "ws://"+n.Address+"/imageapi/v1"+path, "wss://127.0.0.1:"+port+"/imageapi/v1"+path
		for name, test := range map[string]struct {
			dialer  *websocket.Dialer
			address string
			header  http.Header
		}{
			"read-only certificate": {https("reader"), secure, nil},
			"foreign Origin":        {http1, plain, http.Header{"Origin": {"http://evil.example"}}},
			"own host, other port":  {http1, plain, http.Header{"Origin": {"http://127.0.0.1:1"}}},
			"hidden Origin":         {http1, plain, http.Header{"Origin": {"null"}}},
			"rebinding Host":        {http1, plain, http.Header{"Host": {"evil.example"}}},
		} {
			s, a, err := upgrade(t.Context(), test.dialer, test.address, test.header)
			must(t, err)
			if s != nil {
				s.Close()
			}
			if a.Status != http.StatusForbidden {
				t.Errorf("%s, %s: status %d: %s", operation, name, a.Status, a.Body)
			}
		}
		// A container on the network of the node.
		key := "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
		ask := fmt.Sprintf(`printf 'GET /imageapi/v1%s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n%s\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: %s\r\n\r\n' | busybox nc 127.0.0.1 %s`,
			strings.ReplaceAll(path, "%", "%%"), n.Address, key, wsProtocol, n.Address[strings.LastIndex(n.Address, ":")+1:])
		if got := n.sh(t, c.ID, ask); !strings.HasPrefix(got, "HTTP/1.1 403 ") {
			t.Errorf("%s by a container: %s", operation, got)
		}
		if operation == "attach" {
			continue // this version returns 501 to those that may
		}
		// Another client with a certificate may, over https, where HTTP/2 is offered too.
		s, a, err := upgrade(t.Context(), https("writer"), secure, nil)
		must(t, err)
		if s == nil {
			t.Errorf("%s: status %d: %s", operation, a.Status, a.Body)
			continue
		}
		s.Close()
	}
	n.Must(t, http.StatusBadRequest, http.MethodGet, upgradePaths(c.ID)["exec"], nil, nil)
}

// A command's arguments and variables are in no log, and who ran one is.
func TestStreamLog(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--log-level", "debug")
	c := n.create(t, start(forever, n.root()))
	query := url.Values{"args": {"true", "secret-argument"}, "env": {"SECRET=secret-variable"}}
	n.opens(t, fmt.Sprintf("/container/exec?id=%d&%s", c.ID, query.Encode())).ends(t)
	n.logs(t, fmt.Sprintf(`level=INFO msg="request completed" request=\S+ client.uid=0 client.pid=%d operation=exec status=101 duration=\S+ object="container %d"`, os.Getpid(), c.ID))
	for _, bad := range []url.Values{{"args": {"secret-argument"}}, {"args": {"true"}, "env": {"secret-variable"}}, {"args": {"true"}, "tty": {"secret-value"}}, {"args": {"true"}, "working_dir": {"secret-dir"}}} {
		s, a, err := n.stream(t.Context(), fmt.Sprintf("/container/exec?id=%d&%s", c.ID, bad.Encode()), nil)
		must(t, err)
		if s != nil {
			s.Close()
		}
		if a.Status != http.StatusUnprocessableEntity {
			t.Errorf("%v: status %d: %s", bad, a.Status, a.Body)
		}
	}
	testkit.Eventually(t, "all are logged", func() bool { return strings.Count(n.Log(), "operation=exec") == 5 })
	for _, secret := range []string{"secret-variable", "secret-value", "secret-argument", "secret-dir"} {
		if strings.Contains(n.Log(), secret) {
			t.Errorf("the log has %s", secret)
		}
	}
	if match := regexp.MustCompile(`.*args=.*`).FindString(n.Log()); match != "" {
		t.Errorf("the log has %s", match)
	}
}

// A wrong query is refused, and the parameters are those of the specification.
func TestStreamParameters(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, start(forever, n.root()))
	for query, want := range map[string]int{
		"id=%d&args=true&colour=red": 400, "id=%d&args=true&tty=perhaps": 422, "id=x&args=true": 422, "args=true": 422, "id=%d": 422, "id=%d&args=true&a;b": 400,
	} {
		query = strings.Replace(query, "%d", fmt.Sprint(c.ID), 1)
		s, a, err := n.stream(t.Context(), "/container/exec?"+query, nil)
		must(t, err)
		if s != nil || a.Status != want || a.Message() == "" {
			t.Errorf("%s: status %d: %s", query, a.Status, a.Body)
		}
	}
	d := &websocket.Dialer{NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", n.Socket)
	}, Subprotocols: []string{"v4.channel.k8s.io"}}
	_, a, err := upgrade(t.Context(), d, "ws://localhost/imageapi/v1"+streamPath(c.ID, "true", ""), nil)
	must(t, err)
	if a.Status != http.StatusBadRequest || !strings.Contains(a.Message(), wsProtocol) {
		t.Errorf("another protocol: status %d: %s", a.Status, a.Body)
	}
	// Invalid messages do no harm.
	s := n.opens(t, streamPath(c.ID, "read line; echo $line", "&stdin=true"))
	for _, message := range []string{"", "\x04", "\x04{", "\x04{\"Width\":99999}", "\x07x", "\x01x", "\x02", "\x03", "\xff", "\xff\x01", "\x00"} {
		must(t, s.WriteMessage(websocket.BinaryMessage, []byte(message)))
	}
	must(t, s.WriteControl(websocket.PingMessage, []byte("x"), time.Now().Add(time.Minute)))
	must(t, s.says(wsStdin, "fine\n"))
	if r := s.ends(t); r.Stdout != "fine\n" {
		t.Errorf("it wrote %s", show(r))
	}
	if err := errors.Join(s.Close()); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// authority issues certificates for a test: of the server, of a reader and of a writer.
type authority struct {
	server string
	pool   *x509.CertPool
}

func newAuthority(t *testing.T, dir string) authority {
	t.Helper()
	issue := func(name string, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		template := &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: parent == nil, BasicConstraintsValid: true,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if parent == nil {
			parent, signer = template, key
		}
		raw, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		must(t, err)
		secret, err := x509.MarshalPKCS8PrivateKey(key)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), 0o600))
		must(t, os.WriteFile(filepath.Join(dir, name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
		made, err := x509.ParseCertificate(raw)
		must(t, err)
		return made, key
	}
	ca, key := issue("ca", nil, nil)
	for _, name := range []string{"server", "reader", "writer"} {
		issue(name, ca, key)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return authority{filepath.Join(dir, "server"), pool}
}
