// Bare is the least that a server in Go can be: it answers every request on a unix socket, and ends when it is
// interrupted.
package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/signal"
)

func main() {
	listener, err := net.Listen("unix", os.Args[1])
	if err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	_ = server.Serve(listener) // until it is closed
}
