package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

// Paths at which a GET is upgraded to a WebSocket, with the names of these operations for logs and metrics. The specification describes
// them in words only: Swagger 2 has no status 101.
const (
	execPath   = basePath + "/container/exec"
	attachPath = basePath + "/container/attach"
)

// isUpgrade reports whether r asks for something that changes as a GET of these paths does, though it is a GET.
func isUpgrade(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && (r.URL.Path == execPath || r.URL.Path == attachPath)
}

// upgrades serves the operations that need a WebSocket, in front of the generated router.
func (a *api) upgrades(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isUpgrade(r) {
			next.ServeHTTP(w, r)
			return
		}
		e := exchangeOf(r)
		e.operation, e.known = strings.TrimPrefix(r.URL.Path, basePath+"/container/"), true
		if err := a.upgrade(w, r); err != nil {
			serveError(w, r, err)
		}
	})
}

// upgrade connects a client with a command or a console. An error is one of a request that was not upgraded.
func (a *api) upgrade(w http.ResponseWriter, r *http.Request) error {
	if err := checkUpgrade(r); err != nil {
		return err
	}
	where, command, err := commandIn(r.URL.RawQuery, r.URL.Path == attachPath)
	if err != nil {
		return err
	}
	v, err := a.find(r, where)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	var s *session
	command.Attach = func(in driver.Input) (driver.Attached, error) {
		conn, err := upgrader().Upgrade(w, r, nil)
		if err != nil {
			return driver.Attached{}, err
		}
		s = newSession(conn, cancel)
		return s.attach(in), nil
	}
	out, err := a.Manager.Exec(ctx, v.ID, command)
	if s == nil {
		return err
	}
	if err != nil {
		answer := explain(r, err)
		e := exchangeOf(r)
		e.failure, e.problem = answer.Type, answer.Type
		s.end(failureOf(answer))
		return nil
	}
	s.end(statusOf(out))
	return nil
}

// checkUpgrade finds out whether r can be upgraded, before anything happens.
func checkUpgrade(r *http.Request) error {
	if r.ProtoMajor != 1 || r.Method != http.MethodGet || !websocket.IsWebSocketUpgrade(r) {
		return errs.New(errs.Malformed, "this operation needs a WebSocket: send an HTTP/1.1 GET with Connection: Upgrade and Upgrade: websocket")
	}
	for _, offered := range websocket.Subprotocols(r) {
		if offered == subprotocol {
			return nil
		}
	}
	return errs.New(errs.Malformed, "header Sec-WebSocket-Protocol: must contain %s", subprotocol)
}

// upgrader does the handshake. The guard has compared Origin with Host, and the library does so again.
func upgrader() *websocket.Upgrader {
	return &websocket.Upgrader{Subprotocols: []string{subprotocol}, ReadBufferSize: frame, WriteBufferSize: frame}
}

// commandIn reads the parameters of a command. Their values are in no error: they can be secrets, and errors are logged.
func commandIn(query string, console bool) (t target, c driver.Command, err error) {
	t.class, c.Console = driver.Container, console
	values, err := url.ParseQuery(query)
	if err != nil {
		return t, c, errs.New(errs.Malformed, "query parameters: are not encoded as in a URL")
	}
	var faults errs.Faults
	for name, all := range values {
		last := all[len(all)-1]
		if console && name != "id" && name != "name" {
			return t, c, errs.New(errs.Unknown, "query parameter %.*q: is unknown", maxQuoted, name)
		}
		switch name {
		case "id":
			id, err := strconv.ParseInt(last, 10, 64)
			if err != nil {
				faults.Add("query parameter id", "is no number")
			}
			t.id = &id
		case "name":
			t.name = &last
		case "args":
			c.Args = all
		case "env":
			c.Env = all
		case "user":
			c.User = last
		case "working_dir":
			c.WorkingDir = last
		case "tty":
			c.TTY, err = strconv.ParseBool(last)
		case "stdin":
			c.Interactive, err = strconv.ParseBool(last)
		default:
			return t, c, errs.New(errs.Unknown, "query parameter %.*q: is unknown", maxQuoted, name)
		}
		if err != nil {
			faults.Add("query parameter "+name, "must be true or false")
			err = nil
		}
	}
	return t, c, faults.Err()
}

// subprotocol is that of Kubernetes, whose messages begin with the number of a channel.
const subprotocol = "v5.channel.k8s.io"

// The channels.
const (
	channelStdin  = 0
	channelStdout = 1
	channelStderr = 2
	channelStatus = 3
	channelResize = 4
	channelClose  = 255 // the next byte is the channel that has ended
)

const (
	frame        = 33 << 10        // of buffers: a piece of output and its channel
	pingEvery    = 5 * time.Second // a client is asked whether it is there
	closeTimeout = 5 * time.Second // for a client to read the end
)

// errHungUp is why a command ends whose client is gone.
var errHungUp = errors.New("the client has closed the connection")

// session is a connection that has been upgraded.
type session struct {
	conn   *websocket.Conn
	cancel context.CancelCauseFunc
	pongs  chan string
	ending chan struct{}
	read   chan struct{} // closed when the client sends nothing more
	cut    atomic.Bool
	lock   sync.Mutex // of the writers
}

func newSession(conn *websocket.Conn, cancel context.CancelCauseFunc) *session {
	s := &session{
		conn: conn, cancel: cancel, pongs: make(chan string, 1), ending: make(chan struct{}), read: make(chan struct{}),
	}
	// A client that does not read may ask whether we are there. That must not keep its input from being read.
	conn.SetPingHandler(func(text string) error {
		select {
		case s.pongs <- text:
		default:
		}
		return nil
	})
	return s
}

// attach connects a command with the client.
func (s *session) attach(in driver.Input) driver.Attached {
	go s.receive(in)
	go s.attend()
	return driver.Attached{Stdout: channel{s, channelStdout}, Stderr: channel{s, channelStderr}, Cut: func() {
		s.cut.Store(true)
		_ = s.conn.UnderlyingConn().SetWriteDeadline(time.Unix(1, 0))
	}}
}

// receive passes on what the client sends, until it is gone.
func (s *session) receive(in driver.Input) {
	defer close(s.read)
	buf := make([]byte, frame)
	for {
		_, message, err := s.conn.NextReader()
		if err == nil {
			err = take(in, message, buf)
		}
		if err != nil {
			s.cancel(errHungUp)
			return
		}
	}
}

// take passes on a message. An error is one of the connection. What a command does not take any more is dropped.
func take(in driver.Input, message io.Reader, buf []byte) error {
	number := buf[:1]
	if _, err := io.ReadFull(message, number); err != nil {
		return ignoring(err, io.EOF)
	}
	switch number[0] {
	case channelStdin:
		if in.Stdin != nil {
			if _, err := io.CopyBuffer(struct{ io.Writer }{in.Stdin}, struct{ io.Reader }{message}, buf); err == nil {
				return nil
			}
		}
	case channelResize:
		var size struct{ Width, Height uint16 }
		if json.NewDecoder(io.LimitReader(message, 1<<10)).Decode(&size) == nil && in.Resize != nil {
			_ = in.Resize(size.Height, size.Width) // the command has ended
		}
	case channelClose:
		_, err := io.ReadFull(message, number)
		if err == nil && number[0] == channelStdin && in.Stdin != nil {
			_ = in.Stdin.Close() // twice is no fault
		}
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{message}, buf)
	return err
}

func ignoring(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}

// attend finds out when the client is gone, also while nothing is read from it since the command does not read.
func (s *session) attend() {
	again := time.NewTicker(pingEvery)
	defer again.Stop()
	for {
		var err error
		select {
		case <-s.ending:
			return
		case text := <-s.pongs:
			err = s.conn.WriteControl(websocket.PongMessage, []byte(text), time.Time{}) // it may wait for as long as the output does
		case <-again.C:
			err = s.conn.WriteControl(websocket.PingMessage, nil, time.Time{})
		}
		if err != nil {
			s.cancel(errHungUp)
			return
		}
	}
}

// channel writes to one channel.
type channel struct {
	s      *session
	number byte
}

// Write implements io.Writer.
func (c channel) Write(b []byte) (int, error) {
	c.s.lock.Lock()
	defer c.s.lock.Unlock()
	w, err := c.s.conn.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return 0, err
	}
	_, err = w.Write([]byte{c.number})
	n := 0
	if err == nil {
		n, err = w.Write(b)
	}
	return n, errors.Join(err, w.Close())
}

// end sends the status, and closes the connection when the client has taken that: otherwise unread data from the client would make the
// kernel throw away what it has not read yet.
func (s *session) end(status execStatus) {
	defer s.conn.Close()
	close(s.ending)
	if s.cut.Load() {
		return
	}
	limit := time.AfterFunc(closeTimeout, func() { _ = s.conn.UnderlyingConn().SetDeadline(time.Unix(1, 0)) })
	defer limit.Stop()
	text, err := json.Marshal(status)
	if err == nil {
		_, err = channel{s, channelStatus}.Write(text)
	}
	if err == nil {
		err = s.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(closeTimeout))
	}
	if err == nil {
		<-s.read
	}
}

// execStatus is metav1.Status of Kubernetes, as far as it is used here.
type execStatus struct {
	Metadata struct{}     `json:"metadata"`
	Status   string       `json:"status"`
	Message  string       `json:"message,omitempty"`
	Reason   string       `json:"reason,omitempty"`
	Details  *execDetails `json:"details,omitempty"`
	Code     int          `json:"code,omitempty"`
}

type execDetails struct {
	Causes []execCause `json:"causes"`
}

type execCause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// statusOf returns how a command ended. A signal has the exit status that a shell gives it, and its own cause.
func statusOf(out driver.Output) execStatus {
	code, causes := out.Code, []execCause(nil)
	if out.Signal != 0 {
		code = 128 + out.Signal
		causes = []execCause{{"Signal", strconv.Itoa(out.Signal)}}
	}
	if code == 0 {
		return execStatus{Status: "Success"}
	}
	text := strconv.Itoa(code)
	return execStatus{
		Status: "Failure", Reason: "NonZeroExitCode", Message: "command terminated with exit code " + text,
		Details: &execDetails{append([]execCause{{"ExitCode", text}}, causes...)},
	}
}

// failureOf returns why the result of a command is unknown.
func failureOf(answer *models.Error) execStatus {
	reason := "InternalError"
	switch int(answer.Code) {
	case http.StatusConflict:
		reason = "Conflict"
	case http.StatusServiceUnavailable:
		reason = "ServiceUnavailable"
	case http.StatusGatewayTimeout:
		reason = "Timeout"
	}
	return execStatus{Status: "Failure", Reason: reason, Message: strings.ToValidUTF8(*answer.Message, ""), Code: int(answer.Code)}
}
