package nfs

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
)

// mount tries the addresses of the server one after the other and returns a detached mount. What is left of the time is
// shared among the addresses that are left.
func (u *unit) mount(ctx context.Context, id int64) (*os.File, error) {
	addrs, err := u.m.resolve(ctx, u.options.network, u.address)
	if err != nil {
		return nil, err
	}
	var failed []error
	for i, addr := range addrs {
		tree, err := u.mountFrom(ctx, id, addr, len(addrs)-i)
		if err == nil {
			return tree, nil
		}
		failed = append(failed, err)
		if !nobodyThere(err) || ctx.Err() != nil {
			break
		}
	}
	return nil, together(failed)
}

// mountFrom mounts from one address in an n-th of the time that ctx has.
func (u *unit) mountFrom(ctx context.Context, id int64, addr netip.Addr, n int) (*os.File, error) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, time.Now().Add(time.Until(deadline)/time.Duration(n)))
		defer cancel()
	}
	params, err := u.params(ctx, addr)
	if err != nil {
		return nil, u.explain(addr, err)
	}
	fs := mount.FS{Type: "nfs", Source: u.source, Params: params, Attr: u.options.Attr | mount.OnNode}
	if u.readOnly() {
		fs.Params = append(fs.Params, mount.Param{Key: "ro"})
		fs.Attr |= mount.ReadOnly
	}
	tree, err := u.m.mounts.Helper(id).Mount(ctx, fs)
	if err != nil {
		return nil, u.explain(addr, err)
	}
	return tree, nil
}

// params are what mount.nfs(8) would pass to the kernel, then the client's own options.
func (u *unit) params(ctx context.Context, addr netip.Addr) ([]mount.Param, error) {
	with := func(key, value string) mount.Param { return mount.Param{Key: key, Value: value, HasValue: true} }
	version := versions[u.Version]
	params := []mount.Param{with("addr", addr.String()), with("vers", version)}
	own, err := ownAddress(ctx, addr)
	if ctx.Err() != nil {
		return nil, errs.New(errs.Deadline, "mount nfs %s: %w", u.source, context.Cause(ctx))
	}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return nil, mount.Refused(&mount.Error{Op: "mount", Type: "nfs", Source: u.source, Err: errno}) // the kernel would say so too
	}
	if err != nil {
		return nil, err
	}
	switch {
	case version != "3":
		params = append(params, with("clientaddr", own.String()))
	case !u.options.locks && !hasStatd():
		params = append(params, mount.Param{Key: "nolock"})
	}
	if host := u.options.mountHost; host != "" {
		addrs, err := u.m.resolve(ctx, u.options.network, host)
		if err != nil {
			return nil, err
		}
		params = append(params, with("mountaddr", addrs[0].String()))
	}
	return append(params, u.options.Params...), nil
}

// refusals are what a server's refusal, or its absence, looks like to the kernel.
var refusals = []struct {
	errnos []error
	absent bool // nobody is there, at this address
	class  errs.Class
	text   string
}{
	{
		[]error{unix.ENOTDIR}, false, errs.Remote,
		"a part of the path is a file on the server, not a directory",
	},
	{
		[]error{unix.ENOENT, unix.EACCES, unix.EPERM, unix.ESTALE}, false, errs.Remote,
		"the server has no such export, or does not let this node use it: look at `exportfs -v` on the server",
	},
	{
		[]error{unix.ECONNREFUSED, unix.ECONNRESET, unix.ECONNABORTED, unix.EPIPE, unix.ENOTCONN}, true, errs.Remote,
		"no NFS server listens there: start it, or use the option port",
	},
	{
		[]error{unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENETDOWN, unix.EADDRNOTAVAIL, unix.EAFNOSUPPORT}, true, errs.Remote,
		"the server cannot be reached; check this node's interfaces and routes",
	},
	{
		[]error{unix.ETIMEDOUT, context.DeadlineExceeded}, true, errs.Deadline,
		"the server does not answer: look whether it runs, and for a packet filter on the way",
	},
	{
		[]error{unix.EPROTONOSUPPORT, unix.EPROTOTYPE, unix.EPFNOSUPPORT}, false, errs.Remote,
		"the server does not have this version or transport of NFS",
	},
	{[]error{unix.EIO, unix.EREMOTEIO, unix.EPROTO, unix.EBADMSG, unix.ENOTSUP}, false, errs.Remote, "the server's answer makes no sense for this mount"},
}

// explain says what a failed mount comes from, and what to do.
func (u *unit) explain(addr netip.Addr, err error) error {
	e, ok := errors.AsType[*mount.Error](err)
	switch {
	case ok && e.Option != "":
		return err // it is named
	case ok && slices.Contains(e.Words, "NFS: Version unavailable"):
		return errs.New(errs.Unsupported, "%w; the kernel of this node does not have version %s of NFS: load its module (modprobe nfsv%.1s)", err, u.Version, u.Version)
	}
	if u.options.kerberos {
		class := errs.ClassOf(err)
		if errors.Is(err, unix.EINVAL) {
			class = errs.Unsupported
		}
		err = errs.New(class, "%w; Kerberos (the option sec) needs rpc.gssd and a key of this node in /etc/krb5.keytab, the module rpcsec_gss_krb5, and a server that exports with it", err)
	}
	at := ""
	if addr.String() != u.address {
		at = " (" + addr.String() + ")"
	}
	for _, r := range refusals {
		for _, errno := range r.errnos {
			if errors.Is(err, errno) {
				return &refusal{absent: r.absent, error: errs.New(r.class, "%w%s; %s", err, at, r.text)}
			}
		}
	}
	return err
}

// refusal is an error that explain has understood.
type refusal struct {
	error
	absent bool
}

func (r *refusal) Unwrap() error { return r.error }

// nobodyThere reports whether another address of the server may do better.
func nobodyThere(err error) bool {
	r, ok := errors.AsType[*refusal](err)
	return ok && r.absent
}

// together makes one error of those of all addresses. Its class is that of the last one.
func together(failed []error) error {
	last := failed[len(failed)-1]
	if len(failed) == 1 {
		return last
	}
	texts := make([]string, len(failed))
	for i, err := range failed {
		texts[i] = err.Error()
	}
	return errs.New(errs.ClassOf(last), "tried %d addresses: %s", len(failed), strings.Join(texts, "; "))
}
