package daemon

import (
	"context"
	"errors"
	"time"
)

// forkTimeout is how long a child of a killed daemon can take to execute its program. Until then the child has the daemon's lock and socket
// open.
const forkTimeout = time.Second

// occupied is the error of a resource that another daemon uses, or a child that it has just forked.
type occupied string

func (o occupied) Error() string { return string(o) }

// whileOccupied retries while a resource is occupied, for at most forkTimeout.
func whileOccupied(ctx context.Context, try func() error) error {
	end := time.NewTimer(forkTimeout)
	defer end.Stop()
	again := time.NewTicker(forkTimeout / 50)
	defer again.Stop()
	for {
		err := try()
		if _, ok := errors.AsType[occupied](err); !ok {
			return err
		}
		select {
		case <-again.C:
		case <-end.C:
			return err
		case <-ctx.Done():
			return err
		}
	}
}
