package container

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/sys/rootpath"
	"github.com/kraken-hpc/imageapi/models"
)

// The limits of what is read from an image, which is untrusted, and of the time that its server has.
const (
	osReleaseSize  = 4096
	osReleaseValue = 256
	osReleaseTime  = 2 * time.Second
)

// osRelease returns the version of the operating system in the root of a container (os-release(5)), or nil. The path is resolved inside
// the root.
func (d *Driver) osRelease(ctx context.Context, place driver.Placement) *models.OsRelease {
	if len(place.Needs) == 0 || !place.Needs[0].Tree.Made() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, osReleaseTime)
	defer cancel()
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		if data, err := d.readInside(ctx, place.Needs[0].Tree, path); err == nil {
			return parseOSRelease(data)
		}
	}
	return nil
}

// readInside reads the begin of a regular file in a root. If the root is remote, a helper does it.
func (d *Driver) readInside(ctx context.Context, tree *driver.Tree, path string) ([]byte, error) {
	open, mayHang := rootpath.Open, tree.Remote && d.opt.Helper != nil
	if mayHang {
		open = func(root, path string, flags int) (*os.File, error) { return d.opt.Helper.Open(ctx, root, path, flags) }
	}
	found, err := open(tree.Path, path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	var st unix.Statx_t
	if err := unix.Statx(int(found.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, unix.EINVAL
	}
	link := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), found.Fd())
	size := min(int64(st.Size), osReleaseSize)
	if mayHang {
		return d.opt.Helper.Read(ctx, link, unix.O_RDONLY|unix.O_NONBLOCK, 0, size)
	}
	f, err := os.OpenFile(link, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, size))
}

// parseOSRelease reads the assignments of os-release(5) that clients see.
func parseOSRelease(data []byte) *models.OsRelease {
	r := &models.OsRelease{}
	fields := map[string]*string{"PRETTY_NAME": &r.PrettyName, "IMAGE_ID": &r.ImageID, "IMAGE_VERSION": &r.ImageVersion, "VERSION_ID": &r.VersionID}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		name, value, _ := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		if to := fields[name]; to != nil {
			*to = harmless(unquoted(value))
		}
	}
	if *r == (models.OsRelease{}) {
		return nil
	}
	return r
}

// unquoted returns a value without the quotes of a shell.
func unquoted(value string) string {
	if len(value) < 2 || value[0] != value[len(value)-1] || value[0] != '"' && value[0] != '\'' {
		return value
	}
	single := value[0] == '\''
	value = value[1 : len(value)-1]
	if single {
		return value
	}
	return strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\$`, "$", "\\`", "`").Replace(value)
}

// harmless returns a text of an image that does nothing to a terminal, and is not long.
func harmless(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		quoted := strconv.Quote(text)
		text = quoted[1 : len(quoted)-1]
	}
	if len(text) <= osReleaseValue {
		return text
	}
	return strings.ToValidUTF8(text[:osReleaseValue], "") + "…"
}
