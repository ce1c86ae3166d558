package wire

import "time"

// Started is the content of Ready of a supervisor. A descriptor of the first process comes with it: a number could be another one's by now.
type Started struct {
	PID    int       // of the command
	Since  time.Time // when it was started
	Config Config    // as it was started with
}

func (s *Started) table(t *Table) {
	Number(t, "pid", &s.PID)
	t.Time("since", &s.Since)
	t.Part("config", s.Config.table)
}

// Fields encodes s.
func (s Started) Fields() []string { return Fields(s.table) }

// ParseStarted decodes the Ready message of a supervisor.
func ParseStarted(m Message) (s Started, err error) {
	if err = ParseFields(m.Fields, s.table); err == nil && s.PID <= 0 {
		err = ErrMalformed
	}
	return s, err
}

// State is the Status of a supervisor.
type State struct {
	Up          bool          // the first process has said that the container is ready
	Asked       bool          // it was asked to stop
	StopTimeout time.Duration // of a Stop
	Losing      string        // why output is being lost, or empty
}

func (s *State) table(t *Table) {
	t.Flag("up", &s.Up)
	t.Flag("asked", &s.Asked)
	Number(t, "timeout", &s.StopTimeout)
	t.Text("losing", &s.Losing)
}

// Fields encodes s.
func (s State) Fields() []string { return Fields(s.table) }

// ParseState decodes the Status message of a supervisor.
func ParseState(m Message) (s State, err error) { return s, ParseFields(m.Fields, s.table) }

// Exit is how the first process of a container ended, or a command.
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

func (e *Exit) table(t *Table) {
	Number(t, "code", &e.Code)
	Number(t, "signal", &e.Signal)
	t.Time("at", &e.At)
	t.Text("logerr", &e.LogErr)
	t.Time("since", &e.Since)
	t.Flag("asked", &e.Asked)
	t.Maybe("oom", &e.OOM)
}

// Fields encodes e.
func (e Exit) Fields() []string { return Fields(e.table) }

// Message encodes e.
func (e Exit) Message() Message { return Message{Kind: Ended, Fields: e.Fields()} }

// ParseExit decodes an Ended message.
func ParseExit(m Message) (e Exit, err error) {
	if m.Kind != Ended {
		return e, ErrMalformed
	}
	return e, ParseFields(m.Fields, e.table)
}

// StopTimeoutMessage encodes a StopTimeout message.
func StopTimeoutMessage(d time.Duration) Message {
	return Message{Kind: StopTimeout, Fields: Fields(func(t *Table) { Number(t, "timeout", &d) })}
}

// ParseStopTimeout decodes a StopTimeout message.
func ParseStopTimeout(m Message) (d time.Duration, err error) {
	if err = ParseFields(m.Fields, func(t *Table) { Number(t, "timeout", &d) }); err == nil && d <= 0 {
		err = ErrMalformed
	}
	return d, err
}
