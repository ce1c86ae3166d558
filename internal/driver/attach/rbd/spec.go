package rbd

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/kraken-hpc/imageapi/internal/sys/rbd"
)

// spec is what the kernel is told, but for the time limit.
func (u *unit) spec(ctx context.Context) (s rbd.Spec, warnings []string, err error) {
	s = rbd.Spec{User: u.User, Pool: u.Pool, Namespace: u.Options.Namespace, Image: u.Image, Snapshot: u.Snapshot, Options: u.options()}
	usual := uint16(portV1)
	if u.messenger() == 2 {
		usual = portV2
	}
	var unknown []string
	if s.Monitors, unknown, err = u.driver.resolve(ctx, u.Monitors, usual); err != nil {
		return s, nil, err
	}
	for _, text := range unknown {
		warnings = append(warnings, "rbd.monitors: "+text)
	}
	if extra := len(s.Monitors) - rbd.MaxMonitors; extra > 0 {
		s.Monitors = s.Monitors[:rbd.MaxMonitors]
		warnings = append(warnings, fmt.Sprintf("rbd.monitors: the last %d of their addresses are left out: the kernel takes %d", extra, rbd.MaxMonitors))
	}
	if u.Options.IP == "" {
		return s, warnings, nil
	}
	own, _, err := u.driver.resolve(ctx, []string{u.Options.IP}, 0)
	if err != nil {
		return s, nil, err
	}
	s.Options = append(s.Options, rbd.Option{Key: "ip", Value: address(own[0])})
	return s, warnings, nil
}

// address writes our own address: without a port the kernel chooses one.
func address(a netip.AddrPort) string {
	switch {
	case a.Port() != 0:
		return a.String()
	case a.Addr().Is6():
		return "[" + a.Addr().String() + "]"
	}
	return a.Addr().String()
}

// options are those of the definition under the kernel's names; what is not given is left to the kernel.
func (u *unit) options() (all []rbd.Option) {
	o := &u.Options
	for _, flag := range []struct {
		set bool
		key string
	}{
		{o.Share, "share"}, {o.Noshare, "noshare"},
		{o.Crc, "crc"}, {o.Nocrc, "nocrc"},
		{o.CephRequiresSignatures, "cephx_require_signatures"}, {o.NocephRequiresSignatures, "nocephx_require_signatures"},
		{o.CephxSignMessages, "cephx_sign_messages"}, {o.NocephxSignMessages, "nocephx_sign_messages"},
		{o.TCPNodelay, "tcp_nodelay"}, {o.NotcpNodelay, "notcp_nodelay"},
		{o.Rw, "rw"}, {o.Ro, "ro"},
		{o.LockOnRead, "lock_on_read"}, {o.Exclusive, "exclusive"},
		{o.Notrim, "notrim"}, {o.AbortOnFull, "abort_on_full"},
	} {
		if flag.set {
			all = append(all, rbd.Option{Key: flag.key})
		}
	}
	for _, n := range numbers(o) {
		if n.value != 0 && n.name != timeLimit {
			all = append(all, rbd.Option{Key: n.name, Value: strconv.FormatInt(n.value, 10)})
		}
	}
	for _, text := range []rbd.Option{{Key: "fsid", Value: o.Fsid}, {Key: "ms_mode", Value: o.MsMode}} {
		if text.Value != "" {
			all = append(all, text)
		}
	}
	return all
}

// timeLimit is the option that keeps the kernel from waiting forever.
const timeLimit = "mount_timeout"

// limits keep the kernel from waiting forever for the cluster, and for a lock if it is to take one. They end before the
// create does, so that the kernel's answer still comes. The default is a constant where it can be: mappings with
// different values do not share their connections.
func (u *unit) limits(ctx context.Context) []rbd.Option {
	const reserve = 3 * time.Second
	limit := u.timeout()
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)-reserve)
	}
	text := strconv.FormatInt(max(int64(limit.Seconds()), 1), 10)
	all := []rbd.Option{{Key: timeLimit, Value: text}}
	if u.Options.LockTimeout == 0 && (u.Options.Exclusive || u.Options.LockOnRead) {
		all = append(all, rbd.Option{Key: "lock_timeout", Value: text})
	}
	return all
}

// timeout is how long to wait for the cluster, if there is that much time.
func (u *unit) timeout() time.Duration {
	const usual = 15 * time.Second
	if given := u.Options.MountTimeout; given != 0 {
		return time.Duration(given) * time.Second
	}
	return usual
}
