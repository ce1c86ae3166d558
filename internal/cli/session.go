package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/kraken-hpc/imageapi/client"
	"github.com/kraken-hpc/imageapi/models"
)

// subprotocol is that of Kubernetes: the first byte of a message is a channel.
const subprotocol = "v5.channel.k8s.io"

// The channels.
const (
	channelStdin  = 0
	channelStdout = 1
	channelStderr = 2
	channelStatus = 3
	channelResize = 4
	channelClose  = 255
)

const piece = 32 << 10 // bytes that are passed on at a time

// session is an upgraded connection to a command or a console.
type session struct {
	conn  *websocket.Conn
	mu    sync.Mutex // one message at a time
	pongs chan string
}

// status is how a command ended, metav1.Status of Kubernetes.
type status struct {
	Status, Message string
	Details         struct {
		Causes []struct{ Reason, Message string }
	}
}

// upgrade opens a session. An answer that is none is an error with the server's message.
func (c *connection) upgrade(ctx context.Context, path string, query url.Values) (*session, error) {
	conn, resp, err := c.dialer.DialContext(ctx, c.base+client.DefaultBasePath+path+"?"+query.Encode(), nil)
	switch {
	case errors.Is(err, websocket.ErrBadHandshake):
		return nil, refused(resp)
	case err != nil:
		return nil, c.courier.explain(ctx, err)
	}
	s := &session{conn: conn, pongs: make(chan string, 1)}
	// A server that does not read may ask whether we are there. That must not keep its output from being read.
	conn.SetPingHandler(func(text string) error {
		select {
		case s.pongs <- text:
		default:
		}
		return nil
	})
	return s, nil
}

func refused(resp *http.Response) error {
	var answer models.Error
	body, _ := io.ReadAll(resp.Body) // a part is no JSON either
	if json.Unmarshal(body, &answer) != nil || answer.Message == nil {
		return fail(exitRefused, "the server returns %s to an upgrade", resp.Status)
	}
	return fail(exitRefused, "%s", *answer.Message)
}

// pass copies what the server sends to out and errs until the end, which it returns. What is read from in goes to the server; nil for nothing.
// The end of ctx closes the connection.
func (s *session) pass(ctx context.Context, in io.Reader, out, errs io.Writer) (*status, error) {
	over := make(chan struct{})
	defer close(over)
	defer s.conn.Close()
	defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	go s.answer(over)
	if in != nil {
		go s.feed(in)
	}
	end, err := s.receive(out, errs)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return end, err
}

// answer answers pings.
func (s *session) answer(over <-chan struct{}) {
	for {
		select {
		case <-over:
			return
		case text := <-s.pongs:
			if s.conn.WriteControl(websocket.PongMessage, []byte(text), time.Time{}) != nil { // it may wait for as long as the input does
				return
			}
		}
	}
}

func (s *session) feed(in io.Reader) {
	buf := make([]byte, piece)
	for {
		n, err := in.Read(buf)
		if n > 0 && s.send(channelStdin, buf[:n]) != nil {
			return // receive learns why
		}
		if err != nil {
			_ = s.send(channelClose, []byte{channelStdin})
			return
		}
	}
}

func (s *session) send(channel byte, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, err := s.conn.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return err
	}
	_, err = w.Write([]byte{channel})
	if err == nil {
		_, err = w.Write(data)
	}
	return errors.Join(err, w.Close())
}

// resize tells the size of the terminal.
func (s *session) resize(rows, columns uint16) {
	text, err := json.Marshal(map[string]uint16{"Width": columns, "Height": rows})
	if err == nil {
		_ = s.send(channelResize, text) // receive learns of a connection that is lost
	}
}

func (s *session) receive(out, errs io.Writer) (*status, error) {
	buf := make([]byte, piece)
	for {
		_, message, err := s.conn.NextReader()
		if err == nil {
			_, err = io.ReadFull(message, buf[:1])
		}
		if err != nil {
			return nil, fail(exitUnreachable, "the connection is lost, and the end of the command unknown: %w", err)
		}
		to := io.Discard
		switch buf[0] {
		case channelStdout:
			to = out
		case channelStderr:
			to = errs
		case channelStatus:
			end := new(status)
			if err := json.NewDecoder(message).Decode(end); err != nil {
				return nil, fail(exitUnreachable, "read the status: %w", err)
			}
			return end, nil
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{message}, buf); err != nil {
			return nil, fail(exitRefused, "pass on the output: %w", err)
		}
	}
}

// err returns how the command ended.
func (s *status) err() error {
	if s.Status == "Success" {
		return nil
	}
	for _, cause := range s.Details.Causes {
		if code, err := strconv.Atoi(cause.Message); err == nil && cause.Reason == "ExitCode" {
			return ended(code)
		}
	}
	return fail(execFailed, "%s", s.Message)
}
