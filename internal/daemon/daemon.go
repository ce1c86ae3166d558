// Package daemon is the life of the server: it puts the parts together, listens, and takes everything down in order.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/kraken-hpc/imageapi/internal/api"
)

// Run serves the API until ctx ends, and then takes down all that it has made. It returns an error if it could not
// start, if a listener failed, or if something could not be taken down; the log names what.
func Run(ctx context.Context, cfg Config, log *slog.Logger) (err error) {
	release, err := claim(cfg.Node.RunDir)
	if err != nil {
		return err
	}
	defer release()
	// From here on clients can connect; they are answered when everything is ready.
	listeners, err := listen(ctx, cfg)
	if err != nil {
		return err
	}
	defer closeAll(listeners)
	node, err := openNode(ctx, cfg, log)
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	defer func() { err = errors.Join(err, node.close()) }()
	handler, err := api.New(api.Options{
		Manager: node.manager, Drivers: node.drivers, Log: log,
		MaxBody: int64(cfg.Limits.MaxBody), Life: ctx, WriteTimeout: cfg.Limits.Write,
	})
	if err != nil {
		return err
	}
	return serve(ctx, cfg, listeners, handler, log)
}
