// This file is safe to edit. Once it exists it will not be overwritten

package restapi

import (
	"crypto/tls"
	"io"
	"net/http"

	"github.com/go-openapi/errors"
	"github.com/go-openapi/runtime"
	"github.com/kraken-hpc/imageapi/restapi/operations"
	"github.com/kraken-hpc/imageapi/restapi/operations/attachments"
	"github.com/kraken-hpc/imageapi/restapi/operations/containers"
	"github.com/kraken-hpc/imageapi/restapi/operations/events"
	"github.com/kraken-hpc/imageapi/restapi/operations/mounts"
	"github.com/kraken-hpc/imageapi/restapi/operations/node"
)

//go:generate swagger generate server --target ../../imageapi --name Imageapi --spec ../swagger.yaml --principal any --exclude-main --strict-responders --return-errors

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
		api.AttachmentsAttachHandler = attachments.AttachHandlerFunc(func(params attachments.AttachParams) (attachments.AttachResponder, error) {
			_ = params

			return attachments.AttachNotImplemented(), nil
		})
	}
	if api.ContainersCreateContainerHandler == nil {
		api.ContainersCreateContainerHandler = containers.CreateContainerHandlerFunc(func(params containers.CreateContainerParams) (containers.CreateContainerResponder, error) {
			_ = params

			return containers.CreateContainerNotImplemented(), nil
		})
	}
	if api.AttachmentsDeleteAttachHandler == nil {
		api.AttachmentsDeleteAttachHandler = attachments.DeleteAttachHandlerFunc(func(params attachments.DeleteAttachParams) (attachments.DeleteAttachResponder, error) {
			_ = params

			return attachments.DeleteAttachNotImplemented(), nil
		})
	}
	if api.ContainersDeleteContainerHandler == nil {
		api.ContainersDeleteContainerHandler = containers.DeleteContainerHandlerFunc(func(params containers.DeleteContainerParams) (containers.DeleteContainerResponder, error) {
			_ = params

			return containers.DeleteContainerNotImplemented(), nil
		})
	}
	if api.MountsDeleteMountHandler == nil {
		api.MountsDeleteMountHandler = mounts.DeleteMountHandlerFunc(func(params mounts.DeleteMountParams) (mounts.DeleteMountResponder, error) {
			_ = params

			return mounts.DeleteMountNotImplemented(), nil
		})
	}
	if api.ContainersExecInContainerHandler == nil {
		api.ContainersExecInContainerHandler = containers.ExecInContainerHandlerFunc(func(params containers.ExecInContainerParams) (containers.ExecInContainerResponder, error) {
			_ = params

			return containers.ExecInContainerNotImplemented(), nil
		})
	}
	if api.ContainersGetContainerStatsHandler == nil {
		api.ContainersGetContainerStatsHandler = containers.GetContainerStatsHandlerFunc(func(params containers.GetContainerStatsParams) (containers.GetContainerStatsResponder, error) {
			_ = params

			return containers.GetContainerStatsNotImplemented(), nil
		})
	}
	if api.NodeGetInfoHandler == nil {
		api.NodeGetInfoHandler = node.GetInfoHandlerFunc(func(params node.GetInfoParams) (node.GetInfoResponder, error) {
			_ = params

			return node.GetInfoNotImplemented(), nil
		})
	}
	if api.AttachmentsListAttachmentsHandler == nil {
		api.AttachmentsListAttachmentsHandler = attachments.ListAttachmentsHandlerFunc(func(params attachments.ListAttachmentsParams) (attachments.ListAttachmentsResponder, error) {
			_ = params

			return attachments.ListAttachmentsNotImplemented(), nil
		})
	}
	if api.ContainersListContainersHandler == nil {
		api.ContainersListContainersHandler = containers.ListContainersHandlerFunc(func(params containers.ListContainersParams) (containers.ListContainersResponder, error) {
			_ = params

			return containers.ListContainersNotImplemented(), nil
		})
	}
	if api.MountsListMountsHandler == nil {
		api.MountsListMountsHandler = mounts.ListMountsHandlerFunc(func(params mounts.ListMountsParams) (mounts.ListMountsResponder, error) {
			_ = params

			return mounts.ListMountsNotImplemented(), nil
		})
	}
	if api.MountsMountHandler == nil {
		api.MountsMountHandler = mounts.MountHandlerFunc(func(params mounts.MountParams) (mounts.MountResponder, error) {
			_ = params

			return mounts.MountNotImplemented(), nil
		})
	}
	if api.ContainersReadContainerLogHandler == nil {
		api.ContainersReadContainerLogHandler = containers.ReadContainerLogHandlerFunc(func(params containers.ReadContainerLogParams) (containers.ReadContainerLogResponder, error) {
			_ = params

			return containers.ReadContainerLogNotImplemented(), nil
		})
	}
	if api.ContainersReplaceContainerHandler == nil {
		api.ContainersReplaceContainerHandler = containers.ReplaceContainerHandlerFunc(func(params containers.ReplaceContainerParams) (containers.ReplaceContainerResponder, error) {
			_ = params

			return containers.ReplaceContainerNotImplemented(), nil
		})
	}
	if api.ContainersRollbackContainerHandler == nil {
		api.ContainersRollbackContainerHandler = containers.RollbackContainerHandlerFunc(func(params containers.RollbackContainerParams) (containers.RollbackContainerResponder, error) {
			_ = params

			return containers.RollbackContainerNotImplemented(), nil
		})
	}
	if api.ContainersSetContainerStateHandler == nil {
		api.ContainersSetContainerStateHandler = containers.SetContainerStateHandlerFunc(func(params containers.SetContainerStateParams) (containers.SetContainerStateResponder, error) {
			_ = params

			return containers.SetContainerStateNotImplemented(), nil
		})
	}
	if api.ContainersUpdateContainerHandler == nil {
		api.ContainersUpdateContainerHandler = containers.UpdateContainerHandlerFunc(func(params containers.UpdateContainerParams) (containers.UpdateContainerResponder, error) {
			_ = params

			return containers.UpdateContainerNotImplemented(), nil
		})
	}
	if api.ContainersWaitForContainerHandler == nil {
		api.ContainersWaitForContainerHandler = containers.WaitForContainerHandlerFunc(func(params containers.WaitForContainerParams) (containers.WaitForContainerResponder, error) {
			_ = params

			return containers.WaitForContainerNotImplemented(), nil
		})
	}
	if api.EventsWatchEventsHandler == nil {
		api.EventsWatchEventsHandler = events.WatchEventsHandlerFunc(func(params events.WatchEventsParams) (events.WatchEventsResponder, error) {
			_ = params

			return events.WatchEventsNotImplemented(), nil
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
