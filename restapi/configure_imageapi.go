// This file is safe to edit. Once it exists it will not be overwritten

package restapi

import (
	"crypto/tls"
	"io"
	"net/http"

	"github.com/go-openapi/errors"
	"github.com/go-openapi/runtime"
	"github.com/go-openapi/runtime/middleware"
	"github.com/kraken-hpc/imageapi/restapi/operations"
	"github.com/kraken-hpc/imageapi/restapi/operations/attachments"
	"github.com/kraken-hpc/imageapi/restapi/operations/containers"
	"github.com/kraken-hpc/imageapi/restapi/operations/events"
	"github.com/kraken-hpc/imageapi/restapi/operations/mounts"
	"github.com/kraken-hpc/imageapi/restapi/operations/node"
)

//go:generate swagger generate server --target ../../imageapi --name Imageapi --spec ../swagger.yaml --principal any --exclude-main --return-errors

func configureFlags(api *operations.ImageapiAPI) {
	// api.CommandLineOptionsGroups = []cmdutils.CommandLineOptionsGroup{ ... }
	_ = api
}

func configureAPI(api *operations.ImageapiAPI) http.Handler {
	// configure the api here
	api.ServeError = errors.ServeError

	// Set your custom logger if needed. Default one is log.Printf
	// Expected interface func(string, ...any)
	//
	// Example:
	// api.Logger = log.Printf

	api.UseSwaggerUI()
	// To continue using redoc as your UI, uncomment the following line
	// api.UseRedoc()

	api.JSONConsumer = runtime.JSONConsumer()

	api.BinProducer = runtime.ByteStreamProducer()
	api.JSONProducer = runtime.JSONProducer()
	api.TextEventStreamProducer = runtime.ProducerFunc(func(w io.Writer, data any) error {
		_ = w
		_ = data

		return errors.NotImplemented("textEventStream producer has not yet been implemented")
	})
	api.TxtProducer = runtime.TextProducer()

	if api.AttachmentsAttachHandler == nil {
		api.AttachmentsAttachHandler = attachments.AttachHandlerFunc(func(params attachments.AttachParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation attachments.Attach has not yet been implemented"), nil
		})
	}
	if api.ContainersCreateContainerHandler == nil {
		api.ContainersCreateContainerHandler = containers.CreateContainerHandlerFunc(func(params containers.CreateContainerParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation containers.CreateContainer has not yet been implemented"), nil
		})
	}
	if api.AttachmentsDeleteAttachHandler == nil {
		api.AttachmentsDeleteAttachHandler = attachments.DeleteAttachHandlerFunc(func(params attachments.DeleteAttachParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation attachments.DeleteAttach has not yet been implemented"), nil
		})
	}
	if api.ContainersDeleteContainerHandler == nil {
		api.ContainersDeleteContainerHandler = containers.DeleteContainerHandlerFunc(func(params containers.DeleteContainerParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation containers.DeleteContainer has not yet been implemented"), nil
		})
	}
	if api.MountsDeleteMountHandler == nil {
		api.MountsDeleteMountHandler = mounts.DeleteMountHandlerFunc(func(params mounts.DeleteMountParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation mounts.DeleteMount has not yet been implemented"), nil
		})
	}
	if api.ContainersExecInContainerHandler == nil {
		api.ContainersExecInContainerHandler = containers.ExecInContainerHandlerFunc(func(params containers.ExecInContainerParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation containers.ExecInContainer has not yet been implemented"), nil
		})
	}
	if api.ContainersGetContainerStatsHandler == nil {
		api.ContainersGetContainerStatsHandler = containers.GetContainerStatsHandlerFunc(func(params containers.GetContainerStatsParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation containers.GetContainerStats has not yet been implemented"), nil
		})
	}
	if api.NodeGetInfoHandler == nil {
		api.NodeGetInfoHandler = node.GetInfoHandlerFunc(func(params node.GetInfoParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation node.GetInfo has not yet been implemented"), nil
		})
	}
	if api.AttachmentsListAttachmentsHandler == nil {
		api.AttachmentsListAttachmentsHandler = attachments.ListAttachmentsHandlerFunc(func(params attachments.ListAttachmentsParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation attachments.ListAttachments has not yet been implemented"), nil
		})
	}
	if api.ContainersListContainersHandler == nil {
		api.ContainersListContainersHandler = containers.ListContainersHandlerFunc(func(params containers.ListContainersParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation containers.ListContainers has not yet been implemented"), nil
		})
	}
	if api.MountsListMountsHandler == nil {
		api.MountsListMountsHandler = mounts.ListMountsHandlerFunc(func(params mounts.ListMountsParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation mounts.ListMounts has not yet been implemented"), nil
		})
	}
	if api.MountsMountHandler == nil {
		api.MountsMountHandler = mounts.MountHandlerFunc(func(params mounts.MountParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation mounts.Mount has not yet been implemented"), nil
		})
	}
	if api.AttachmentsPlanAttachHandler == nil {
		api.AttachmentsPlanAttachHandler = attachments.PlanAttachHandlerFunc(func(params attachments.PlanAttachParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation attachments.PlanAttach has not yet been implemented"), nil
		})
	}
	if api.ContainersPlanContainerHandler == nil {
		api.ContainersPlanContainerHandler = containers.PlanContainerHandlerFunc(func(params containers.PlanContainerParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation containers.PlanContainer has not yet been implemented"), nil
		})
	}
	if api.MountsPlanMountHandler == nil {
		api.MountsPlanMountHandler = mounts.PlanMountHandlerFunc(func(params mounts.PlanMountParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation mounts.PlanMount has not yet been implemented"), nil
		})
	}
	if api.ContainersReadContainerLogHandler == nil {
		api.ContainersReadContainerLogHandler = containers.ReadContainerLogHandlerFunc(func(params containers.ReadContainerLogParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation containers.ReadContainerLog has not yet been implemented"), nil
		})
	}
	if api.ContainersReplaceContainerHandler == nil {
		api.ContainersReplaceContainerHandler = containers.ReplaceContainerHandlerFunc(func(params containers.ReplaceContainerParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation containers.ReplaceContainer has not yet been implemented"), nil
		})
	}
	if api.ContainersRollbackContainerHandler == nil {
		api.ContainersRollbackContainerHandler = containers.RollbackContainerHandlerFunc(func(params containers.RollbackContainerParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation containers.RollbackContainer has not yet been implemented"), nil
		})
	}
	if api.ContainersSetContainerStateHandler == nil {
		api.ContainersSetContainerStateHandler = containers.SetContainerStateHandlerFunc(func(params containers.SetContainerStateParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation containers.SetContainerState has not yet been implemented"), nil
		})
	}
	if api.ContainersUpdateContainerHandler == nil {
		api.ContainersUpdateContainerHandler = containers.UpdateContainerHandlerFunc(func(params containers.UpdateContainerParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation containers.UpdateContainer has not yet been implemented"), nil
		})
	}
	if api.ContainersWaitForContainerHandler == nil {
		api.ContainersWaitForContainerHandler = containers.WaitForContainerHandlerFunc(func(params containers.WaitForContainerParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation containers.WaitForContainer has not yet been implemented"), nil
		})
	}
	if api.EventsWatchEventsHandler == nil {
		api.EventsWatchEventsHandler = events.WatchEventsHandlerFunc(func(params events.WatchEventsParams) (middleware.Responder, error) {
			_ = params

			return middleware.NotImplemented("operation events.WatchEvents has not yet been implemented"), nil
		})
	}

	api.PreServerShutdown = func() {}

	api.ServerShutdown = func() {}

	return setupGlobalMiddleware(api.Serve(setupMiddlewares))
}

// The TLS configuration before HTTPS server starts.
func configureTLS(tlsConfig *tls.Config) {
	// Make all necessary changes to the TLS configuration here.
	_ = tlsConfig
}

// As soon as server is initialized but not run yet, this function will be called.
// If you need to modify a config, store server instance to stop it individually later, this is the place.
// This function can be called multiple times, depending on the number of serving schemes.
// scheme value will be set accordingly: "http", "https" or "unix".
func configureServer(server *http.Server, scheme, addr string) {
	_ = server
	_ = scheme
	_ = addr
}

// The middleware configuration is for the handler executors. These do not apply to the swagger.json document.
// The middleware executes after routing but before authentication, binding and validation.
func setupMiddlewares(handler http.Handler) http.Handler {
	return handler
}

// The middleware configuration happens before anything, this middleware also applies to serving the swagger.json document.
// So this is a good place to plug in a panic handling middleware, logging and metrics.
func setupGlobalMiddleware(handler http.Handler) http.Handler {
	return handler
}
