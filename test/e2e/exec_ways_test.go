package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"github.com/kraken-hpc/imageapi/client"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// Commands reach a container in two ways: by one request that returns the output, and by a WebSocket. What one of them proves about the
// container must be true of the other: eachWay runs a test for both.
func eachWay(t *testing.T, test func(t *testing.T, n *node)) {
	t.Parallel()
	for name, streams := range map[string]bool{"request": false, "stream": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.streams = streams
			test(t, n)
		})
	}
}

// attempt runs a command in the way of the node, and shows the result of a stream as the other way does.
func (n *node) attempt(ctx context.Context, path string, c *models.ContainerCommand) (harness.Answer, error) {
	if !n.streams {
		return n.Do(ctx, http.MethodPost, path, c)
	}
	query := url.Values{"args": c.Args, "env": c.Env}
	if c.User != "" {
		query.Set("user", c.User)
	}
	if c.WorkingDir != "" {
		query.Set("working_dir", c.WorkingDir)
	}
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	s, refused, err := n.stream(ctx, path+sep+query.Encode(), nil)
	if err != nil || s == nil {
		return refused, err
	}
	defer s.Close()
	return s.rest()
}

// wsSession is the client's end of an upgraded connection.
type wsSession struct{ *websocket.Conn }

// The channels of v5.channel.k8s.io.
const (
	wsStdin, wsStdout, wsStderr, wsStatus, wsResize, wsClose = 0, 1, 2, 3, 4, 255
	wsProtocol                                               = "v5.channel.k8s.io"
)

// stream upgrades a GET. Without an upgrade it returns the response.
func (n *node) stream(ctx context.Context, path string, header http.Header) (*wsSession, harness.Answer, error) {
	d := &websocket.Dialer{
		NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", n.Socket)
		},
		Subprotocols: []string{wsProtocol},
	}
	return upgrade(ctx, d, "ws://localhost"+client.DefaultBasePath+path, header)
}

func upgrade(ctx context.Context, d *websocket.Dialer, address string, header http.Header) (*wsSession, harness.Answer, error) {
	conn, resp, err := d.DialContext(ctx, address, header)
	if errors.Is(err, websocket.ErrBadHandshake) {
		body, err := io.ReadAll(resp.Body)
		return nil, harness.Answer{Status: resp.StatusCode, Header: resp.Header, Body: body}, err
	}
	if err != nil {
		return nil, harness.Answer{}, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	return &wsSession{conn}, harness.Answer{Status: http.StatusSwitchingProtocols, Header: resp.Header}, nil
}

// says sends a message to a channel.
func (s *wsSession) says(channel byte, data string) error {
	return s.WriteMessage(websocket.BinaryMessage, append([]byte{channel}, data...))
}

// next returns the next message, and with an error nothing.
func (s *wsSession) next() (channel byte, data []byte, err error) {
	_, message, err := s.ReadMessage()
	if err == nil && len(message) == 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, nil, err
	}
	return message[0], message[1:], nil
}

// wsEnd is the status that ends a stream.
type wsEnd struct {
	Status, Message, Reason string
	Code                    int
	Details                 struct {
		Causes []struct{ Reason, Message string }
	}
}

// cause returns one of the causes as a number, or -1.
func (e wsEnd) cause(reason string) int64 {
	for _, c := range e.Details.Causes {
		if c.Reason == reason {
			n, err := strconv.ParseInt(c.Message, 10, 64)
			if err == nil {
				return n
			}
		}
	}
	return -1
}

// rest reads to the end, and shows it as the answer of POST /container/exec.
func (s *wsSession) rest() (harness.Answer, error) {
	var out, errs strings.Builder
	for {
		channel, data, err := s.next()
		if err != nil {
			return harness.Answer{}, fmt.Errorf("no status came: %w", err)
		}
		switch channel {
		case wsStdout:
			out.Write(data)
		case wsStderr:
			errs.Write(data)
		case wsStatus:
			var end wsEnd
			if err := json.Unmarshal(data, &end); err != nil {
				return harness.Answer{}, err
			}
			return end.answer(out.String(), errs.String()), nil
		default:
			return harness.Answer{}, fmt.Errorf("a message on channel %d", channel)
		}
	}
}

// noText returns what is no text.
func noText(text string) []byte {
	if utf8.ValidString(text) {
		return nil
	}
	return []byte(text)
}

func (e wsEnd) answer(out, errs string) harness.Answer {
	if e.Status != "Success" && e.Reason != "NonZeroExitCode" {
		body, _ := json.Marshal(models.Error{Code: int64(e.Code), Message: &e.Message})
		return harness.Answer{Status: e.Code, Body: body}
	}
	r := models.ContainerResult{StdoutBase64: noText(out), StderrBase64: noText(errs), Stdout: strings.ToValidUTF8(out, "�"), Stderr: strings.ToValidUTF8(errs, "�")}
	switch signal, code := e.cause("Signal"), e.cause("ExitCode"); {
	case signal > 0:
		r.Signal = signal
	case e.Status == "Success":
		r.ExitCode = to(int64(0))
	default:
		r.ExitCode = &code
	}
	body, _ := r.MarshalBinary()
	return harness.Answer{Status: http.StatusOK, Body: body}
}

// within fails a test whose session ends too late, instead of hanging.
func (s *wsSession) within(d time.Duration) *wsSession {
	_ = s.SetReadDeadline(time.Now().Add(d))
	return s
}
