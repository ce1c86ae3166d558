package daemon

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// strays finds what stands in the run directory of objects that nobody knows, as after a journal was lost: mountpoints, with
// what is mounted there, and the logs and sockets of containers.
func strays(cfg Node, known func(id int64) bool) (found []string) {
	for _, dir := range []string{"mounts", "logs"} {
		entries, err := os.ReadDir(filepath.Join(cfg.RunDir, dir))
		if err != nil {
			continue // there is none
		}
		for _, entry := range entries {
			number, _, _ := strings.Cut(entry.Name(), ".")
			if id, err := strconv.ParseInt(number, 10, 64); err == nil && !known(id) {
				found = append(found, filepath.Join(cfg.RunDir, dir, entry.Name()))
			}
		}
	}
	return found
}
