package holders

import (
	"context"
	"errors"
	"time"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// ErrPassing marks the error of an act on a device whose users may be gone in a moment: programs that look at every new device (udev,
// blkid), and the mounts of a mount namespace whose last process has ended, which the kernel unmounts later.
var ErrPassing = errors.New("in use")

// Nothing announces that a device is closed.
const (
	releaseTimeout = 2 * time.Second
	retryInterval  = 20 * time.Millisecond
)

// WhenFree calls act until it fails with another error than ErrPassing or succeeds, but no longer than such users take.
func WhenFree(ctx context.Context, act func() error) error {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	for {
		err := act()
		if !errors.Is(err, ErrPassing) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryInterval):
		}
	}
}

// InUse returns the error of an act on a device, such as "detach", with its users. how is ErrPassing or another error "in use".
func InUse(act, path string, how error, users []Holder) error {
	if len(users) == 0 {
		return errs.New(errs.Busy, "%s %s: %w: by a mount that no process can see, by the kernel, or by this daemon itself", act, path, ErrPassing)
	}
	return errs.New(errs.Busy, "%s %s: %w: %s", act, path, how, Text(users))
}
