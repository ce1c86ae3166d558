package proto

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// Version is what the supervisors of this version can be asked for. It grows when there is more.
const Version = 3

// VersionLaunch is the first version whose supervisors start commands (Launch).
const VersionLaunch = 2

// VersionStopTimeout is the first version whose supervisors accept another stop timeout (StopTimeout).
const VersionStopTimeout = 3

// ExitNew is added to Config.ExitName while that file is being written.
const ExitNew = ".new"

// Hello tells a later daemon what has been.
type Hello struct {
	Version int       // of the supervisor
	PID     int       // of the first process; 0 if the start is still under way
	Since   time.Time // when it was started, if it was
	Up      bool      // it has said that the container is ready
	Asked   bool      // it was asked to stop
}

// Message encodes h: fields of the form key=value.
func (h Hello) Message() []byte {
	fields := []string{"version=" + strconv.Itoa(h.Version)}
	if h.PID != 0 {
		fields = append(fields, "pid="+strconv.Itoa(h.PID), "since="+nanoseconds(h.Since))
	}
	if h.Up {
		fields = append(fields, "up=1")
	}
	if h.Asked {
		fields = append(fields, "asked=1")
	}
	return Encode(Greeting, fields...)
}

// ParseHello decodes the fields of a Greeting message.
func ParseHello(fields []string) (h Hello, err error) {
	for _, field := range fields {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "version":
			h.Version, err = strconv.Atoi(value)
		case "pid":
			h.PID, err = strconv.Atoi(value)
		case "since":
			h.Since, err = moment(value)
		case "up":
			h.Up = value == "1"
		case "asked":
			h.Asked = value == "1"
		}
		if err != nil {
			return Hello{}, errMalformed
		}
	}
	if h.Version < 1 {
		return Hello{}, errMalformed
	}
	return h, nil
}

// Start is what a Started message tells.
type Start struct {
	PID   int       // of the command
	Since time.Time // when it was started
}

// Message encodes s.
func (s Start) Message() []byte { return Encode(Started, strconv.Itoa(s.PID), nanoseconds(s.Since)) }

// ParseStart decodes the fields of a Started message.
func ParseStart(fields []string) (s Start, err error) {
	if len(fields) < 2 {
		return Start{}, errMalformed
	}
	pid, err1 := strconv.Atoi(fields[0])
	since, err2 := moment(fields[1])
	if err := errors.Join(err1, err2); err != nil || pid <= 0 {
		return Start{}, errMalformed
	}
	return Start{PID: pid, Since: since}, nil
}

// Exit tells how the first process of a container ended, or how a command did.
type Exit struct {
	Code   int       // exit status
	Signal int       // the signal that killed it, or 0
	At     time.Time // when
	LogErr string    // why the log is not complete, or empty

	// Of a container only:

	Since time.Time // when it was started
	Asked bool      // it was asked to stop
	OOM   *bool     // whether the kernel killed any process of it for lack of memory, if somebody counts that
}

// Message encodes e.
func (e Exit) Message() []byte {
	oom := ""
	if e.OOM != nil {
		oom = bit(*e.OOM)
	}
	return Encode(Exited, strconv.Itoa(e.Code), strconv.Itoa(e.Signal), nanoseconds(e.At), e.LogErr, nanoseconds(e.Since), bit(e.Asked), oom)
}

// ParseExit decodes the fields of an Exited message.
func ParseExit(fields []string) (e Exit, err error) {
	if len(fields) < 7 {
		return Exit{}, errMalformed
	}
	code, err1 := strconv.Atoi(fields[0])
	signal, err2 := strconv.Atoi(fields[1])
	at, err3 := moment(fields[2])
	since, err4 := moment(fields[4])
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return Exit{}, errMalformed
	}
	e = Exit{Code: code, Signal: signal, At: at, LogErr: fields[3], Since: since, Asked: fields[5] == bit(true)}
	if oom := fields[6]; oom != "" {
		e.OOM = new(oom == bit(true))
	}
	return e, nil
}

func bit(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// nanoseconds writes a time as nanoseconds since 1970; what is not known is 0.
func nanoseconds(t time.Time) string {
	if t.IsZero() {
		return "0"
	}
	return strconv.FormatInt(t.UnixNano(), 10)
}

// moment is the opposite of nanoseconds.
func moment(text string) (time.Time, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n == 0 {
		return time.Time{}, err
	}
	return time.Unix(0, n), nil
}

// StopTimeoutMessage encodes a StopTimeout message.
func StopTimeoutMessage(d time.Duration) []byte {
	return Encode(StopTimeout, strconv.FormatInt(int64(d), 10))
}

// ParseStopTimeout decodes the fields of a StopTimeout message.
func ParseStopTimeout(fields []string) (time.Duration, error) {
	if len(fields) < 1 {
		return 0, errMalformed
	}
	n, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil || n <= 0 {
		return 0, errMalformed
	}
	return time.Duration(n), nil
}
