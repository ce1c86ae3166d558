package daemon

import (
	"context"
	"errors"
	"time"
)

// aftermath is how long what a daemon that was killed had just forked may take to execute its program. Until then it has the
// daemon's lock and socket open.
const aftermath = time.Second

// occupied is the error of what another daemon has, or what one has just forked.
type occupied string

func (o occupied) Error() string { return string(o) }

// outwait tries until nobody else is there, for as long as that may be an aftermath.
func outwait(ctx context.Context, try func() error) error {
	end := time.NewTimer(aftermath)
	defer end.Stop()
	again := time.NewTicker(aftermath / 50)
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
