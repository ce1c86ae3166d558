package container

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// addSystemdEnv adds to a configuration the variables that systemd expects, unless the definition has them.
func (u *unit) addSystemdEnv(config *wire.Config, id int64) error {
	machine, err := u.driver.machineID(id)
	config.Env = override([]string{"container_uuid=" + machine, "NOTIFY_SOCKET=" + wire.NotifySocket}, config.Env)
	return err
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
