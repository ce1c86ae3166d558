package audit

import (
	"net"
	"time"
)

// journaldSocket takes datagrams with the fields of an entry (systemd.journal-fields(7)).
const journaldSocket = "/run/systemd/journal/socket"

// journaldTimeout is how long a change waits for journald, which stops reading while it restarts.
const journaldTimeout = 2 * time.Second

type journald struct {
	path string
	conn *net.UnixConn
}

func openJournald(path string) (*journald, error) {
	j := &journald{path: path}
	return j, j.dial()
}

func (j *journald) dial() (err error) {
	if j.conn == nil {
		j.conn, err = net.DialUnix("unixgram", nil, &net.UnixAddr{Name: j.path, Net: "unixgram"})
	}
	return err
}

// reserve only makes sure that journald is there: it makes room by dropping its oldest entries.
func (j *journald) reserve(int64) error { return j.dial() }

// write sends an entry. A restarted journald has another socket behind the path, hence the second attempt.
func (j *journald) write(line []byte) error {
	entry := append([]byte("SYSLOG_IDENTIFIER=imageapi-audit\nPRIORITY=5\nMESSAGE="), line...)
	err := j.send(entry)
	if err != nil {
		err = j.send(entry)
	}
	return err
}

func (j *journald) send(entry []byte) error {
	if err := j.dial(); err != nil {
		return err
	}
	_ = j.conn.SetWriteDeadline(time.Now().Add(journaldTimeout)) // of an open socket it can be set
	_, err := j.conn.Write(entry)
	if err != nil {
		_ = j.Close()
	}
	return err
}

// Close implements io.Closer.
func (j *journald) Close() (err error) {
	if j.conn != nil {
		err, j.conn = j.conn.Close(), nil
	}
	return err
}
