package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/kraken-hpc/imageapi/internal/printable"
)

// progress shows on a terminal, while something takes longer than a second, for how long it does, and the detail of it. It ends, and its line is gone, when the function that it returns has returned.
func (a *app) progress(ctx context.Context, c *connection, doing string, detail func(world) string) (stop func()) {
	if a.errWidth == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.tick(ctx, c, doing, detail)
	}()
	return func() {
		cancel()
		<-done
	}
}

// clearLine erases what is on the line of the cursor.
const clearLine = "\r\x1b[K"

func (a *app) tick(ctx context.Context, c *connection, doing string, detail func(world) string) {
	start := a.now()
	ticks := time.NewTicker(time.Second)
	defer ticks.Stop()
	shown := false
	for {
		select {
		case <-ctx.Done():
			if shown {
				_, _ = fmt.Fprint(a.err, clearLine)
			}
			return
		case <-ticks.C:
		}
		w, err := c.load(ctx)
		if err != nil {
			continue // the request itself tells what is wrong
		}
		line := fmt.Sprintf("%s for %s%s", doing, a.now().Sub(start).Round(time.Second), detail(w))
		_, _ = fmt.Fprint(a.err, clearLine, cut(printable.Text(line), a.errWidth-1))
		shown = true
	}
}

// inPhase returns the function that lists the objects in a phase, others' too: which of them are for this request the server does not tell.
func inPhase(phase string) func(world) string {
	return func(w world) string { return listPhase(w, phase) }
}

func listPhase(w world, phase string) string {
	var names []string
	for _, o := range w.objects() {
		if o.state != phase {
			continue
		}
		name := o.String()
		if o.waits != "" {
			name += " waits for " + printable.Text(o.waits)
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return ""
	}
	return "; " + phase + ": " + strings.Join(names, ", ")
}
