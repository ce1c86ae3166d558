package container

import (
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
)

// surround adds to a configuration what systemd is to find around it. What the definition says of the environment comes
// first.
func (u *unit) surround(config *proto.Config, id int64) error {
	machine, err := u.driver.machineID(id)
	if err != nil {
		return err
	}
	// A dumb terminal has no colours and no cursor, which would be no good in a log.
	if i := slices.Index(config.Env, "TERM=linux"); i >= 0 && !slices.Contains(u.Def.Env, "TERM=linux") {
		config.Env[i] = "TERM=dumb"
	}
	for _, entry := range []string{"container_uuid=" + machine, "NOTIFY_SOCKET=" + proto.NotifySocket} {
		name, _, _ := strings.Cut(entry, "=")
		if !slices.ContainsFunc(u.Def.Env, func(e string) bool { return strings.HasPrefix(e, name+"=") }) {
			config.Env = append(config.Env, entry)
		}
	}
	return nil
}

// machineID is what machine-id(5) becomes where the image has none of its own: another one on each node, after each boot of
// the node and for each container, and the same each time that this one is started.
func (d *Driver) machineID(id int64) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("make a machine id: %w", err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "imageapi %s %s %d", strings.TrimSpace(string(boot)), d.logPath(id), id))
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80 // RFC 9562: version 8, of our own making
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16]), nil
}
