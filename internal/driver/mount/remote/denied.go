package remote

import (
	"errors"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
)

// Denied adds to the error of an act on a file who does not permit it, if that is an NFS server: on the node root may do everything.
// Other errors, nil too, stay as they are.
func Denied(err error, path string) error {
	if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
		return err
	}
	table, tableErr := mounttable.Read()
	if tableErr != nil {
		return err
	}
	e, ok := table.Over(filepath.Clean(path))
	server, export, cut := strings.Cut(e.Source, ":/")
	if !ok || !cut || !strings.HasPrefix(e.Type, "nfs") {
		return err
	}
	return errs.New(errs.Remote, "%w: the NFS server %s does not permit it in its export /%s: the export probably maps root to an unprivileged user (root_squash in `exportfs -v` there); "+
		"let all users read the file and search its directories, or export with no_root_squash", err, server, export)
}
