package driver

import (
	"context"
	"time"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

// ContainerUnit is the Unit of a container. Up prepares what outlives a run (the log file), Down removes it;
// neither starts or stops anything.
type ContainerUnit interface {
	Unit
	// Name is the container's name, unique among containers, or empty.
	Name() string
	// Autostart reports whether its creation includes the first start.
	Autostart() bool
	// Restart says when it is started again by itself.
	Restart() Restart
	// Start runs the container once. It returns when the command has become the container's first process, or
	// says why it can't, and then leaves nothing behind.
	Start(ctx context.Context, place Placement, status Status) (Process, error)
	// CheckStart is for Start what Check is for Up.
	CheckStart(ctx context.Context, place Placement) (Preview, error)
	// RecoverRun finds the last run that an earlier daemon started. If its processes have no supervisor any more it ends them. With an
	// error nothing is known of the run, which stays as it is.
	RecoverRun(ctx context.Context, place Placement, status Status) (Found, error)
	// OpenLog begins to read the log of the container with an id. It waits for nothing and delays no writer.
	OpenLog(id int64, query LogQuery) (Log, error)
	// Changed returns a unit with a change. It notes all faults, and returns nil if it finds one.
	Changed(change Change, faults *errs.Faults) ContainerUnit
	// Apply makes the limits of the unit hold for the run proc. If proc is nil, it makes sure that they can hold for the next run. If it
	// fails, the limits of earlier, the unit until now, hold again.
	Apply(id int64, proc Process, earlier ContainerUnit) error
}

// Change is a change of a container's definition.
type Change struct {
	Path   string                  // where Config stood in its request, for messages
	Fields []string                // those that change, by their names on the wire; one that Config lacks gets its default
	Config *models.ContainerConfig // must not be changed or kept
}

// Found is what a later daemon finds of the last run of a container.
type Found struct {
	Process Process   // if it is still supervised, even if it is about to end; else nil
	Ended   *Exit     // how it ended, if that was written down, or that it was Lost; nil if there is none, or a Process
	Since   time.Time // when it was started; zero if nobody knows
	Asked   bool      // it was asked to stop
}

// Restart is the policy of starting a container again.
type Restart struct {
	OnFailure bool  // if it ended by a fault, or could not be started again
	OnSuccess bool  // also if it exited with 0 or rebooted, but not after it powered off
	Max       int64 // how often in a row, or 0 for any number
}

// Process is one run of a container.
type Process interface {
	// PID is that of the first process, in the daemon's pid namespace.
	PID() int
	// Cgroup is the path of its cgroup in the file system, or empty if that can't be seen on the node.
	Cgroup() string
	// Ready is closed when the container says that it is ready, or when it runs if it is not one to say so.
	Ready() <-chan struct{}
	// Stop asks the first process to end and kills whatever is left after the stop timeout. It does not wait.
	// A frozen container is thawed first. Further calls change nothing.
	Stop()
	// StopTimeout is how long after Stop the processes are killed.
	StopTimeout() time.Duration
	// Kill ends all processes at once. It does not wait.
	Kill()
	// Survivors names the processes that the container has, or is empty if it has none.
	Survivors() string
	// Freeze returns when no process of the container runs any more; Thaw lets them run again.
	Freeze(ctx context.Context) error
	Thaw(ctx context.Context) error
	// Exec runs a command beside the first process and returns when it has ended. What it left running goes on. If ctx ends it is
	// killed; if the container does, or is frozen or stopping to begin with, the error is an errs.Conflict.
	Exec(ctx context.Context, command Command) (Output, error)
	// Stats tells what it uses at this moment. It waits for nothing.
	Stats() (Stats, error)
	// Done is closed when no process is left, the log is complete and the cgroup is gone.
	Done() <-chan struct{}
	// Exit tells how it ended; only after Done.
	Exit() Exit
}

// Stats is what a run uses. What nothing counts is nil.
type Stats struct {
	Memory      *int64 // bytes
	MemoryLimit *int64 // bytes; nil also if there is no limit
	Swap        *int64 // bytes
	CPU         *int64 // microseconds since it was started
	PIDs        *int64 // processes and threads
	OOMKills    *int64 // processes that the kernel killed for lack of memory
	Log         *int64 // bytes of the log that are kept
}

// Exit tells how the first process of a container ended.
type Exit struct {
	Code   int       // exit status; meaningless if Signal is set
	Signal int       // the signal that killed it, or 0
	Halted bool      // it powered off, halted or rebooted from inside, see reboot(2) on pid namespaces
	Reboot bool      // and of these it rebooted
	OOM    *bool     // whether the kernel killed any of its processes for lack of memory; nil where nobody can tell
	At     time.Time // when
	Lost   string    // why the status is not known (the supervisor died), or empty
	Left   error     // what could not be cleaned up afterwards, or nil
}
