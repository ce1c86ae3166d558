package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/kraken-hpc/imageapi/internal/printable"
)

// slow is the annotation of a command that can take longer than a second. Its value is the present participle of its action.
const slow = "slow"

func slowly(doing string) map[string]string { return map[string]string{slow: doing} }

// busy shows on a terminal, while the command takes longer than a second, the time and what the server waits for. The returned
// function ends it.
func (a *app) busy(ctx context.Context, doing string) (stop func()) {
	client, err := a.connect()
	if a.errWidth == 0 || err != nil || strings.HasPrefix(client.courier.host, "ssh:") { // ssh may ask for a password in this line
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.tick(ctx, client, doing)
	}()
	return func() {
		cancel()
		<-done
		a.err.busy.show("")
	}
}

func (a *app) tick(ctx context.Context, client *connection, doing string) {
	start := a.now()
	ticks := time.NewTicker(time.Second)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		w, err := client.load(ctx)
		if err != nil {
			continue // the request itself returns the error
		}
		line := fmt.Sprintf("%s for %s%s", doing, a.now().Sub(start).Round(time.Second), unfinished(w))
		a.err.busy.show(cut(printable.Text(line), a.errWidth-1))
	}
}

// unfinished lists the objects that change, including those of other clients: the server does not return which of them belong to a request.
func unfinished(w world) (list string) {
	for _, phase := range []string{"pending", "stopping"} {
		var names []string
		for _, o := range w.objects() {
			if o.state != phase {
				continue
			}
			name := o.String()
			if o.waits != "" {
				name += " waits for " + o.waits
			}
			names = append(names, name)
		}
		if len(names) > 0 {
			list += "; " + phase + ": " + strings.Join(names, ", ")
		}
	}
	for _, m := range w.Containers {
		if m.Replacing != nil {
			list += fmt.Sprintf("; %s: step %s", ofContainer(m), m.Replacing.Step)
		}
	}
	return list
}
