package rbd

import (
	"context"
	"errors"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// meaning is what an errno of /sys/bus/rbd/add tells.
type meaning struct {
	class  errs.Class
	advice string
	words  *regexp.Regexp // the lines of the log that go with it; others are of other mappings
}

var (
	anyWords  = regexp.MustCompile(``)
	authWords = regexp.MustCompile(`auth|key not found|not permitted|watch`)
)

var meanings = map[unix.Errno]meaning{
	unix.ENOENT: {errs.Invalid, "the pool, namespace, image or snapshot does not exist", regexp.MustCompile(`does not exist`)},
	unix.ENXIO:  {errs.Unsupported, "the image has features that this kernel lacks", regexp.MustCompile(`unsupported features`)},
	unix.EACCES: {errs.Remote, "the cluster refused the user: check name, secret, and the capabilities of the user (ceph auth get)", authWords},
	unix.EPERM:  {errs.Remote, "the cluster refused the user: check name, secret, and the capabilities of the user (ceph auth get)", authWords},
	unix.EBUSY: {errs.Conflict, "another client has locked the image (`rbd lock ls` names it): unmap the image there, remove the lock with `rbd lock rm` if that client is gone for good, " +
		"or map the image with ro", regexp.MustCompile(`lock`)},
	unix.EROFS:     {errs.Conflict, "another client holds the image's exclusive lock and keeps it: unmap it there, or map it with ro", regexp.MustCompile(`lock`)},
	unix.ETIMEDOUT: {errs.Deadline, "no monitor answered within mount_timeout: check monitors and the network (ms_mode legacy uses port 6789, the other modes 3300)", regexp.MustCompile(`mon\d|tfm|lock`)},
	unix.EINVAL:    {errs.Invalid, "the kernel does not take an option", anyWords},
	unix.ESHUTDOWN: {errs.Remote, "the cluster has put this node on its blocklist (ceph osd blocklist ls)", anyWords},
	unix.EIO:       {errs.Remote, "the cluster cannot be read", anyWords},
}

// explain makes an error of what the kernel answered to a mapping and logged meanwhile.
func (s Spec) explain(err error, words []string) error {
	errno, ok := errors.AsType[unix.Errno](err)
	if !ok {
		return s.unanswered(err, words)
	}
	m, known := meanings[errno]
	if !known {
		m = meaning{errs.Internal, "the kernel's client failed", anyWords}
	}
	var said []string
	for _, w := range words {
		if m.words.MatchString(w) {
			said = append(said, w+namedFeatures(w))
		}
	}
	if len(said) == 0 {
		return errs.New(m.class, "map %s: %s: %w", s, m.advice, errno)
	}
	return errs.New(m.class, "map %s: %s: %w (kernel: %s)", s, m.advice, errno, strings.Join(said, "; "))
}

// unanswered is for what the kernel gave no answer to.
func (s Spec) unanswered(err error, words []string) error {
	class := errs.ClassOf(err)
	if class == errs.Internal && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		class = errs.Deadline
	}
	if len(words) == 0 {
		return errs.New(class, "map %s: %w", s, err)
	}
	return errs.New(class, "map %s: %w (kernel: %s)", s, err, strings.Join(words, "; "))
}

var unsupported = regexp.MustCompile(`unsupported features: (0x[0-9a-f]+)`)

// namedFeatures names the features whose numbers the kernel logs.
func namedFeatures(line string) string {
	found := unsupported.FindStringSubmatch(line)
	if found == nil {
		return ""
	}
	set, err := strconv.ParseUint(found[1], 0, 64)
	if err != nil {
		return ""
	}
	return ", " + FeatureNames(set)
}

// routine lines come with every mapping.
var routine = regexp.MustCompile(`session established|client\d+ fsid|: capacity |Deprecated parameter|Ignoring `)

// concerns reports whether a line of the kernel's log may be about this mapping: it is one of krbd or its messenger, and
// names no image, pool or monitor of another mapping.
func (s Spec) concerns(line string) bool {
	text, ours := strings.CutPrefix(line, "rbd: ")
	if !ours {
		text, ours = strings.CutPrefix(line, "libceph: ")
	}
	if !ours || routine.MatchString(line) {
		return false
	}
	subject, _, _ := strings.Cut(text, " ")
	switch {
	case subject == "image", subject == "snap":
		return strings.Contains(line, s.Image)
	case subject == "pool":
		return strings.Contains(line, s.Pool)
	case strings.HasPrefix(subject, "mon"):
		return s.hasMonitor(text)
	}
	return true
}

// hasMonitor reports whether a line such as "mon0 (1)192.0.2.7:6789 socket error on write" is about one of the monitors.
func (s Spec) hasMonitor(line string) bool {
	for _, m := range s.Monitors {
		if strings.Contains(line, ")"+m.String()+" ") {
			return true
		}
	}
	return false
}
