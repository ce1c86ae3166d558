package spawn

import (
	"fmt"
	"os"
	"slices"

	"github.com/moby/sys/mountinfo"
)

// mountpoints lists where something is mounted in the namespace of the calling thread, the newest first, without what is
// mounted at /.
func mountpoints() ([]string, error) {
	table, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer table.Close()
	infos, err := mountinfo.GetMountsFromReader(table, nil)
	if err != nil {
		return nil, fmt.Errorf("read /proc/thread-self/mountinfo: %w", err)
	}
	var points []string
	for _, m := range slices.Backward(infos) {
		if m.Mountpoint != "/" {
			points = append(points, m.Mountpoint)
		}
	}
	return points, nil
}
