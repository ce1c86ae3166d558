package container

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/kraken-hpc/imageapi/internal/mounttable"
)

// reviveTimeout bounds how long the end of a container waits for a file system that it has remounted.
const reviveTimeout = 5 * time.Second

// writables are file systems of the node that can be written to and that a container has, as a part of its root or by binds, with their numbers.
// A container shares them with the node: an image that powers off remounts them read-only.
type writables map[uint64]bool

// findWritables looks at the file systems at paths of the node and below.
func findWritables(paths []string) (writables, error) {
	table, err := mounttable.Read()
	if err != nil {
		return nil, err
	}
	found := writables{}
	for _, path := range paths {
		nearest := ""
		for point, e := range table.All {
			switch {
			case within(point, path) && !e.Has("ro"):
				found[e.Number] = true
			case within(path, point) && len(point) > len(nearest):
				nearest = point
			}
		}
		if over := table.At(nearest); len(over) > 0 && len(table.At(path)) == 0 && !over[len(over)-1].Has("ro") {
			found[over[len(over)-1].Number] = true
		}
	}
	return found, nil
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// makeWritable makes those writable again that have become read-only.
func (d *Driver) makeWritable(found writables) (err error) {
	if len(found) == 0 || d.opt.Helper == nil {
		return nil
	}
	table, err := mounttable.Read()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), reviveTimeout)
	defer cancel()
	tried := writables{}
	for point, e := range table.All {
		if found[e.Number] && e.Has("ro") && !tried[e.Number] {
			tried[e.Number] = true
			err = errors.Join(err, d.opt.Helper.Revive(ctx, point))
		}
	}
	return err
}

// shared returns the paths of the node whose file systems a container has.
func (u *unit) shared(root string) []string {
	paths := []string{root}
	for _, b := range u.Def.Binds {
		paths = append(paths, *b.Source)
	}
	return paths
}
