package state

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
)

// Phase is where an object is in its life.
type Phase string

// The phases of an object.
const (
	Pending  Phase = "pending"  // being made; nothing can use it yet
	Ready    Phase = "ready"    // as its definition says
	Stopping Phase = "stopping" // being torn down; with an Error it took too long and is retried
	Broken   Phase = "broken"   // a teardown failed, or what it needs is gone; Error says which
)

// Run is the present or last run of a container.
type Run struct {
	State      State     `json:"state"`
	PID        int       `json:"pid,omitempty"`       // of the first process, while there is one
	Cgroup     string    `json:"cgroup,omitempty"`    // its directory, while there is a process
	Ready      bool      `json:"ready,omitempty"`     // it runs, and says so if it is one to say it
	ExitCode   *int64    `json:"exit_code,omitempty"` // of the last run, if it ended by exiting
	Signal     int64     `json:"signal,omitempty"`    // that ended the last run, or 0
	Reason     Reason    `json:"reason,omitempty"`    // what ended the last run
	OOM        *bool     `json:"oom,omitempty"`       // whether the kernel killed a process of it for lack of memory, or nil if that is unknown
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	Error      string    `json:"error,omitempty"` // why it is dead, or waits

	StoppingSince time.Time `json:"stopping_since,omitzero"` // while it is StateStopping
	StopDeadline  time.Time `json:"stop_deadline,omitzero"`  // when its processes are killed, while it is StateStopping
	Survives      bool      `json:"survives,omitempty"`      // its processes were killed and have not ended; Error names them

	Restarts    int64     `json:"restarts,omitempty"`     // how often in a row it was started by itself
	NextStartAt time.Time `json:"next_start_at,omitzero"` // while it waits to be started again; it is StateCreated then

	Began     tick `json:"began,omitempty"`      // StartedAt, if this daemon or an earlier one started the run
	NextStart tick `json:"next_start,omitempty"` // NextStartAt
}

// Reason is what ended a run.
type Reason string

// The reasons why a run ended.
const (
	ReasonExited      Reason = "exited"    // its first process did
	ReasonSignalled   Reason = "signalled" // its first process was killed
	ReasonOOM         Reason = "oom"       // its first process was killed for lack of memory
	ReasonPoweroff    Reason = "poweroff"  // from inside; halt looks the same
	ReasonReboot      Reason = "reboot"    // from inside
	ReasonStartFailed Reason = "start-failed"
	ReasonLost        Reason = "supervisor-lost"
	ReasonCorrupted   Reason = "corrupted" // it was fatally corrupted; also while it is stopping for that
)

// Reasons returns all of them.
func Reasons() []Reason {
	return []Reason{ReasonExited, ReasonSignalled, ReasonOOM, ReasonPoweroff, ReasonReboot, ReasonStartFailed, ReasonLost, ReasonCorrupted}
}

// State is the state of a container.
type State string

// The states of a container.
const (
	StateCreated  State = "created"  // never started, or waits to be started again
	StateRunning  State = "running"  // its command was executed and has not ended
	StatePaused   State = "paused"   // frozen
	StateStopping State = "stopping" // asked to stop
	StateExited   State = "exited"   // ended as asked, or by itself without a fault
	StateDead     State = "dead"     // ended by a fault, or could not be started
)

// alive reports whether there are processes.
func (s State) alive() bool {
	return s == StateRunning || s == StatePaused || s == StateStopping
}

// View is an object as it was at one moment. It never changes.
type View struct {
	ID     int64
	Class  driver.Class
	Kind   string
	Name   string // of a container
	Unit   driver.Unit
	Status driver.Status
	Needs  []int64 // in the order of the plan
	Refs   int64   // how many hold it, the client included
	// Dependencies are the objects of Needs.
	Dependencies []Holder
	// NeededBy are the objects that depend on it, by id.
	NeededBy   []Holder
	Labels     map[string]string // of an attachment or a mount; never changed
	Generation int64             // grows with each change of the definition, from 1
	Held       bool              // by the client
	Phase      Phase
	Up         bool      // it is up, as Status describes
	Error      string    // why it is broken, or still stopping
	Since      time.Time // when the phase, or the state of a container, became what it is
	Run        *Run      // of a container

	Replace  *Replace // of a container that is being replaced, or that is kept after it was
	Replaces int64    // of a container without a name: whose place it is to take or has given up

	WaitsFor   string    // what an act on it waits for that takes long, or empty
	WaitsSince time.Time // since when, if it does
}

// Holder is an object that depends on another one.
type Holder struct {
	Class driver.Class
	ID    int64
	Name  string // of a container
}

// Shown returns the state and the phase that clients are shown. A container that was asked to stop is running, in the phase stopping,
// until all its processes have ended: Kraken's module lists containers once a second and takes any other state for the end of the stop.
func (v *View) Shown() (State, Phase) {
	switch {
	case v.Run == nil:
		return StateCreated, v.Phase
	case v.InReplace() && v.Replace.Step == StepCancel && v.Phase == Ready:
		return StateRunning, Stopping
	case v.InReplace():
		return StateRunning, v.Phase
	case v.Run.State != StateStopping:
		return v.Run.State, v.Phase
	case v.Phase == Ready && v.Run.Survives:
		return StateRunning, Broken
	case v.Phase == Ready:
		return StateRunning, Stopping
	}
	return StateRunning, v.Phase
}

// Snapshot is all objects as they were at one moment. It never changes and is read without a lock.
type Snapshot struct {
	lists map[driver.Class][]*View // each sorted by id
	stale chan struct{}            // closed when there is a newer one
	newer *Snapshot                // the next one, to be read after stale was closed
	event int64                    // number of the last event that it shows
}

func newSnapshot(lists map[driver.Class][]*View) *Snapshot {
	return &Snapshot{lists: lists, stale: make(chan struct{})}
}

// List returns the objects of a class in the order of their ids. The caller must not change it.
func (s *Snapshot) List(class driver.Class) []*View { return s.lists[class] }

// Empty reports whether there is no object at all.
func (s *Snapshot) Empty() bool {
	for _, list := range s.lists {
		if len(list) > 0 {
			return false
		}
	}
	return true
}

// beforeTeardown returns s with an object as it was before an earlier teardown of it began, which had not ended yet.
func (s *Snapshot) beforeTeardown(id int64) *Snapshot {
	v, ok := s.Get(id)
	if !ok || v.Phase != Stopping {
		return s
	}
	was := *v
	was.Phase, was.Error, was.WaitsFor, was.WaitsSince = Ready, "", "", time.Time{}
	lists := maps.Clone(s.lists)
	lists[v.Class] = slices.Clone(lists[v.Class])
	lists[v.Class][slices.Index(lists[v.Class], v)] = &was
	return newSnapshot(lists)
}

// Get returns the object with an id.
func (s *Snapshot) Get(id int64) (*View, bool) {
	for _, list := range s.lists {
		if i, ok := find(list, id); ok {
			return list[i], true
		}
	}
	return nil, false
}

// ByName returns the container with a name. No container has the empty name.
func (s *Snapshot) ByName(name string) (*View, bool) {
	if name == "" {
		return nil, false
	}
	list := s.lists[driver.Container]
	if i := slices.IndexFunc(list, func(v *View) bool { return v.Name == name }); i >= 0 {
		return list[i], true
	}
	return nil, false
}

func find(list []*View, id int64) (int, bool) {
	return slices.BinarySearchFunc(list, id, func(v *View, id int64) int { return cmp.Compare(v.ID, id) })
}

// with returns a snapshot in which the views of changed replace or join those with the same ids and those of gone are
// left out. Lists of classes that did not change are shared.
func (s *Snapshot) with(changed []*View, gone []int64) *Snapshot {
	next := newSnapshot(make(map[driver.Class][]*View, len(s.lists)))
	for class, list := range s.lists {
		next.lists[class] = list
	}
	fresh := make(map[driver.Class]bool)
	own := func(class driver.Class) []*View {
		if !fresh[class] {
			fresh[class] = true
			next.lists[class] = slices.Clone(next.lists[class])
		}
		return next.lists[class]
	}
	for _, v := range changed {
		list := own(v.Class)
		i, ok := find(list, v.ID)
		if ok {
			list[i] = v
			continue
		}
		next.lists[v.Class] = slices.Insert(list, i, v)
	}
	for _, id := range gone {
		if v, ok := next.Get(id); ok {
			list := own(v.Class)
			i, _ := find(list, id)
			next.lists[v.Class] = slices.Delete(list, i, i+1)
		}
	}
	return next
}
