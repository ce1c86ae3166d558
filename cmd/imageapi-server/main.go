// Command imageapi-server turns system images into mounts, devices and containers on the node it runs on.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/daemon"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	build "github.com/kraken-hpc/imageapi/internal/version"
)

// version is set by the linker.
var version = "unknown"

// The exit statuses besides 0.
const (
	exitFailed = 1 // it could not start, or left something behind
	exitUsage  = 2
)

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	cfg, warnings, err := daemon.Parse(args)
	if help, ok := errors.AsType[daemon.ErrHelp](err); ok {
		fmt.Println(help)
		return 0
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "imageapi-server: %v\n", err)
		return exitUsage
	}
	if cfg.Version {
		fmt.Printf("imageapi-server %s, commit %s\n", version, build.Revision())
		return 0
	}
	log := daemon.NewLog(cfg.Log, os.Stderr)
	if err := leaveNoCore(); err != nil {
		log.Error("core dump protection failed", logkey.Error, err)
		return exitFailed
	}
	for _, text := range warnings {
		log.Warn("environment variable ignored or deprecated", logkey.Warning, text)
	}
	service, err := daemon.TakeService(log)
	if err != nil {
		log.Error("service manager setup failed", logkey.Error, err)
		return exitFailed
	}
	ctx, stop := signals()
	defer stop()
	if cfg.Clean {
		if err := daemon.CleanStrays(ctx, cfg, daemon.Options{Log: log}); err != nil {
			log.Error("stray cleanup failed", logkey.Error, err)
			return exitFailed
		}
		return 0
	}
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, unix.SIGHUP)
	log.Info("server starting", logkey.Version, version, logkey.PID, os.Getpid())
	if err := daemon.Run(ctx, cfg, daemon.Options{Log: log, Reload: reload, Version: version, Service: service}); err != nil {
		log.Error("server failed", logkey.Error, err)
		return exitFailed
	}
	return 0
}

// leaveNoCore keeps the memory of this process, in which there are secrets, from files, whatever ends it (PR_SET_DUMPABLE(2const)).
func leaveNoCore() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}

// signals returns a context that ends with the first signal to stop. Further ones do nothing, so that an impatient user
// does not cut off running operations; neither does the end of the reader of the log.
func signals() (context.Context, context.CancelFunc) {
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	return signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
}
