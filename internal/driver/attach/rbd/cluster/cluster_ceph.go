//go:build ceph

package cluster

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// Available reports whether Look can ask.
const Available = true

// Look asks the cluster about an image. What does not exist is an errs.Invalid that names it, a user who is refused an
// errs.Remote, a cluster that does not answer an errs.Deadline. The library can't be interrupted: it gives up by itself
// in time for the mapping to have half of what ctx leaves.
func Look(ctx context.Context, q Query) (Answer, error) {
	type result struct {
		answer Answer
		err    error
	}
	limit := q.limit(ctx)
	done := make(chan result, 1)
	go func() { // it ends by the library's own time limits
		answer, err := look(q, limit)
		done <- result{answer, err}
	}()
	select {
	case r := <-done:
		return r.answer, r.err
	case <-ctx.Done():
		return Answer{}, errs.New(errs.Deadline, "ask the cluster about %s: %w", q, context.Cause(ctx))
	}
}

// limit returns the time for each step, in whole seconds as the library has it.
func (q Query) limit(ctx context.Context) time.Duration {
	limit := q.Timeout
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)/2)
	}
	return max(limit.Truncate(time.Second), time.Second)
}

func look(q Query, limit time.Duration) (Answer, error) {
	conn, err := connect(q, limit)
	if err != nil {
		// go-ceph gives back the threads and descriptors of what never connected in a finalizer only.
		runtime.GC()
		return Answer{}, err
	}
	defer conn.Shutdown()
	pool, err := conn.OpenIOContext(q.Pool)
	if err != nil {
		return Answer{}, q.refused(err, "pool %s does not exist", q.Pool)
	}
	defer pool.Destroy()
	if q.Namespace != "" {
		// A user may lack the right to list namespaces: then the image has to tell.
		if exists, err := rbd.NamespaceExists(pool, q.Namespace); err == nil && !exists {
			return Answer{}, q.refused(rbd.ErrNotFound, "namespace %s does not exist in pool %s", q.Namespace, q.Pool)
		}
		pool.SetNamespace(q.Namespace)
	}
	image, err := rbd.OpenImageReadOnly(pool, q.Image, rbd.NoSnapshot)
	if err != nil {
		return Answer{}, q.refused(err, "image %s does not exist", q.where())
	}
	defer image.Close()
	return describe(q, image)
}

// connect needs no file of /etc/ceph, and makes the library write nothing anywhere.
func connect(q Query, limit time.Duration) (*rados.Conn, error) {
	conn, err := rados.NewConnWithUser(q.User)
	if err != nil {
		return nil, fmt.Errorf("ask the cluster about %s: %w", q, err)
	}
	seconds := strconv.Itoa(int(limit.Seconds()))
	for _, option := range [][2]string{
		{"mon_host", q.monitors()}, {"key", q.Secret}, {"keyring", ""},
		{"client_mount_timeout", seconds}, {"rados_mon_op_timeout", seconds}, {"rados_osd_op_timeout", seconds},
		{"log_file", ""}, {"log_to_stderr", "false"}, {"err_to_stderr", "false"}, {"admin_socket", ""},
	} {
		if err := conn.SetConfigOption(option[0], option[1]); err != nil {
			return nil, fmt.Errorf("ask the cluster about %s: set %s: %w", q, option[0], err)
		}
	}
	if err := conn.Connect(); err != nil {
		return nil, q.refused(err, "no monitor answers")
	}
	return conn, nil
}

func describe(q Query, image *rbd.Image) (Answer, error) {
	var a Answer
	var err error
	if q.Snapshot != "" {
		if err = hasSnapshot(q, image); err != nil {
			return a, err
		}
	}
	if a.Features, err = image.GetFeatures(); err != nil {
		return a, q.refused(err, "its features cannot be read")
	}
	watchers, err := image.ListWatchers()
	if err != nil {
		return a, q.refused(err, "its watchers cannot be read")
	}
	for _, w := range watchers {
		a.Users = append(a.Users, User{Address: w.Addr, Client: "client." + strconv.FormatInt(w.Id, 10), How: "watches it"})
	}
	_, lockers, err := image.ListLockers()
	if err != nil {
		return a, q.refused(err, "its locks cannot be read")
	}
	for _, l := range lockers {
		a.Users = append(a.Users, User{Address: l.Addr, Client: l.Client, How: "locks it"})
	}
	return a, nil
}

func hasSnapshot(q Query, image *rbd.Image) error {
	all, err := image.GetSnapshotNames()
	if err != nil {
		return q.refused(err, "its snapshots cannot be read")
	}
	for _, s := range all {
		if s.Name == q.Snapshot {
			return nil
		}
	}
	return q.refused(rbd.ErrNotFound, "image %s has no snapshot %s", q.where(), q.Snapshot)
}

// refused makes an error of what the library answered; missing says what it means if it is that something is not there.
func (q Query) refused(err error, missing string, args ...any) error {
	var coded interface{ ErrorCode() int }
	code := 0
	if errors.As(err, &coded) {
		code = coded.ErrorCode()
	}
	switch errno := unix.Errno(max(code, -code)); errno {
	case unix.ENOENT:
		return errs.New(errs.Invalid, "%s: %w", fmt.Sprintf(missing, args...), errno)
	case unix.EACCES, unix.EPERM:
		return errs.New(errs.Remote, "the cluster refuses client.%s: check name, secret, and the capabilities of the user (ceph auth get client.%s): %w", q.User, q.User, errno)
	case unix.ETIMEDOUT:
		return errs.New(errs.Deadline, "no monitor or OSD of the cluster answers: check monitors, the network, and whether the cluster is healthy: %w", errno)
	}
	return errs.New(errs.Remote, "ask the cluster about %s: %w", q, err)
}

// monitors lists the addresses as Ceph writes them: "v1:192.0.2.7:6789".
func (q Query) monitors() string {
	all := make([]string, len(q.Monitors))
	for i, m := range q.Monitors {
		all[i] = "v" + strconv.Itoa(q.Messenger) + ":" + m.String()
	}
	return strings.Join(all, ",")
}

func (q Query) where() string {
	if q.Namespace != "" {
		return q.Pool + "/" + q.Namespace + "/" + q.Image
	}
	return q.Pool + "/" + q.Image
}

// String names the image, and not the secret.
func (q Query) String() string {
	if q.Snapshot != "" {
		return q.where() + "@" + q.Snapshot
	}
	return q.where()
}
