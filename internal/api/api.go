// Package api serves the HTTP API: it binds requests, calls the state manager, and turns what it answers into the
// types that are generated from swagger.yaml.
//
// A request passes, from outside in: observe (log, panics), the pages (specification, documentation), which every client may read, the guard
// (permissions and limits of clients), the pages for monitoring, the router, the intake, the generated binding and validation, and its handler.
package api

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-openapi/loads"
	"github.com/go-openapi/runtime"
	"github.com/go-openapi/runtime/middleware"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/restapi/operations"
	"github.com/kraken-hpc/imageapi/restapi/operations/attachments"
	"github.com/kraken-hpc/imageapi/restapi/operations/containers"
	"github.com/kraken-hpc/imageapi/restapi/operations/events"
	"github.com/kraken-hpc/imageapi/restapi/operations/mounts"
	nodeops "github.com/kraken-hpc/imageapi/restapi/operations/node"
)

// Manager is what the API needs of the state manager; see package state.
type Manager interface {
	// Create makes a stack, all or nothing. The snapshot holds the new object and everything below it.
	Create(ctx context.Context, plan *driver.Plan) (*state.Snapshot, int64, error)
	// CreateOnce is Create for a client that may ask again.
	CreateOnce(ctx context.Context, plan *driver.Plan, once state.Once) (answer []byte, again bool, id int64, err error)
	// Preview returns the steps of Create. It changes nothing.
	Preview(ctx context.Context, plan *driver.Plan) ([]state.Step, error)
	// Replace replaces a container, and Rollback brings back the version that it has replaced. Both return when they have begun.
	Replace(ctx context.Context, id int64, plan *driver.Plan, opt state.ReplaceOptions, conditions ...state.Condition) (*state.Replacement, error)
	Rollback(ctx context.Context, id int64, opt state.ReplaceOptions) (*state.Replacement, error)
	// PreviewReplace returns the steps of Replace. It changes nothing.
	PreviewReplace(ctx context.Context, id int64, plan *driver.Plan, conditions ...state.Condition) ([]state.Step, error)
	// Delete removes an object. The snapshot is from before.
	Delete(ctx context.Context, class driver.Class, id int64, force bool, conditions ...state.Condition) (*state.Snapshot, []string, error)
	// SetState brings a container into the state running, exited or paused.
	SetState(ctx context.Context, id int64, want state.State) (*state.Snapshot, error)
	// Update changes the definition of a container.
	Update(ctx context.Context, id int64, change driver.Change, conditions ...state.Condition) (*state.Snapshot, error)
	// Exec runs a command in a container and returns when it has ended.
	Exec(ctx context.Context, id int64, command driver.Command) (driver.Output, error)
	// Stats returns the resource usage of a container. It never waits.
	Stats(id int64) (driver.Stats, error)
	// Snapshot never waits.
	Snapshot() *state.Snapshot
	// Wait returns the first snapshot, from now on, in which done says yes about an object.
	Wait(ctx context.Context, id int64, done func(v *state.View) (bool, error)) (*state.Snapshot, error)
	// Events returns the events up to a snapshot and after the event with a number.
	Events(s *state.Snapshot, after int64, buf []state.Event) (n int, kept bool)
	// OpenLog begins to read the log of a container.
	OpenLog(id int64, query driver.LogQuery) (driver.Log, error)
}

// Options is what an API is made from. All fields but Access and WriteTimeout are required.
type Options struct {
	Manager      Manager
	Drivers      driver.Set
	Log          *slog.Logger
	Access       Access          // permissions of clients
	MaxBody      int64           // bytes of a request's body
	MaxNesting   int             // how deep braces and brackets of a body may be nested
	Life         context.Context // ends when the daemon begins to shut down: requests that only wait end then
	WriteTimeout time.Duration   // for a client to take a piece of a log, or some events; 0 for any time
	Meter        Meter           // nil for none
	Auditor      Auditor         // nil for none
	// Info describes the server and the node, except the version of the interface; nil if /info is never requested.
	Info func(ctx context.Context) *models.Info
}

// Meter counts requests, and serves the counts.
type Meter interface {
	// Request counts one that has ended. operation is that of the specification, or "other"; a long one waits for an event or a command.
	Request(operation string, status int, took time.Duration, long bool)
	// InFlight adds to the number of running requests.
	InFlight(more int)
	// Refused counts one that the guard refused, for one of Causes.
	Refused(cause string)
	// Listeners adds to the number of open event streams.
	Listeners(more int)
	// Reset counts a reset of an event stream.
	Reset(reason string)
	// Handler answers with all that was counted.
	Handler() http.Handler
}

// Auditor records changes.
type Auditor interface {
	// Admit makes sure that a change can be recorded. Without an error it ends by Record.
	Admit() error
	// Record writes the record of a change that was admitted.
	Record(message string, attrs ...slog.Attr)
	// Note writes a record in addition to that of the change.
	Note(message string, attrs ...slog.Attr)
}

type api struct {
	Options
	spec     *Specification
	lists    sync.Map      // by class, each whole list as it was last encoded: clients that poll get the same bytes until a change
	name     string        // of this API: requests and events are named by it and a number
	requests atomic.Uint64 // counts those that it has named
}

// New returns the handler of the whole API.
func New(spec *Specification, o Options) http.Handler {
	a := &api{Options: o, spec: spec, name: strings.ToLower(rand.Text()[:8])}
	return a.observe(pages(a.guard(health(a.Life, a.Meter, a.upgrades(head(dryRuns(a.route(spec.routes))))))))
}

// route leads each request to its operation. It takes the place of the generated Serve, which has a page that loads scripts
// from elsewhere: the templates by which that is made would keep all methods of all types in the program.
func (a *api) route(doc *loads.Document) http.Handler {
	o := a.operations(doc)
	o.Init()
	return o.Context().RoutesHandler(a.intake)
}

// operations connects each operation of the specification with its handler.
func (a *api) operations(doc *loads.Document) *operations.ImageapiAPI {
	o := operations.NewImageapiAPI(doc)
	o.ServeError = serveError
	o.JSONConsumer, o.JSONProducer = runtime.ConsumerFunc(consume), jsonProducer()
	o.AttachmentsListAttachmentsHandler = attachments.ListAttachmentsHandlerFunc(a.listAttachments)
	o.AttachmentsAttachHandler = attachments.AttachHandlerFunc(a.attach)
	o.AttachmentsPlanAttachHandler = attachments.PlanAttachHandlerFunc(a.planAttach)
	o.AttachmentsDeleteAttachHandler = attachments.DeleteAttachHandlerFunc(a.deleteAttach)
	o.MountsListMountsHandler = mounts.ListMountsHandlerFunc(a.listMounts)
	o.MountsMountHandler = mounts.MountHandlerFunc(a.mount)
	o.MountsPlanMountHandler = mounts.PlanMountHandlerFunc(a.planMount)
	o.MountsDeleteMountHandler = mounts.DeleteMountHandlerFunc(a.deleteMount)
	o.ContainersListContainersHandler = containers.ListContainersHandlerFunc(a.listContainers)
	o.ContainersCreateContainerHandler = containers.CreateContainerHandlerFunc(a.createContainer)
	o.ContainersPlanContainerHandler = containers.PlanContainerHandlerFunc(a.planContainer)
	o.ContainersDeleteContainerHandler = containers.DeleteContainerHandlerFunc(a.deleteContainer)
	o.ContainersGetContainerStatsHandler = containers.GetContainerStatsHandlerFunc(a.getContainerStats)
	o.ContainersSetContainerStateHandler = containers.SetContainerStateHandlerFunc(a.setContainerState)
	o.ContainersReplaceContainerHandler = containers.ReplaceContainerHandlerFunc(a.replaceContainer)
	o.ContainersRollbackContainerHandler = containers.RollbackContainerHandlerFunc(a.rollbackContainer)
	o.ContainersUpdateContainerHandler = containers.UpdateContainerHandlerFunc(a.updateContainer)
	o.ContainersReadContainerLogHandler = containers.ReadContainerLogHandlerFunc(a.readContainerLog)
	o.ContainersWaitForContainerHandler = containers.WaitForContainerHandlerFunc(a.waitForContainer)
	o.ContainersExecInContainerHandler = containers.ExecInContainerHandlerFunc(a.execInContainer)
	o.NodeGetInfoHandler = nodeops.GetInfoHandlerFunc(func(p nodeops.GetInfoParams) (middleware.Responder, error) {
		info := a.Info(p.HTTPRequest.Context())
		info.APIVersion = a.spec.Version
		return reply(http.StatusOK, info, nil)
	})
	o.EventsWatchEventsHandler = events.WatchEventsHandlerFunc(a.watchEvents)
	return o
}
