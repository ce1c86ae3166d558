package container

import (
	"math"
	"slices"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// How long a command may take.
const (
	defaultTimeout = 20 * time.Second
	maxTimeout     = time.Hour
)

func timeout(c driver.Command) time.Duration {
	if c.Timeout == 0 && c.Attach != nil {
		return math.MaxInt64
	}
	if c.Timeout == 0 {
		return defaultTimeout
	}
	return c.Timeout
}

// commandConfig checks a command and says how it is to be run: as the first process was, but for what the command says.
func (p *process) commandConfig(c driver.Command) (wire.Config, error) {
	if err := checkCommand(c); err != nil {
		return wire.Config{}, err
	}
	config := p.config // with all that restricts the container, also fields that are new; but for what concerns the first process only:
	config.Hostname, config.Systemd, config.StopSignal, config.StopTimeout = "", false, 0, 0
	config.Devices, config.HostDevices, config.Binds = nil, false, nil
	config.LogName, config.LogSize = "", 0
	config.Args, config.Env = c.Args, commandEnv(p.config.Env, c)
	config.Input, config.TTY = c.Input != nil || c.Interactive || c.TTY, c.TTY
	if c.User != "" {
		config.User = c.User
	}
	if c.WorkingDir != "" {
		config.WorkingDir = c.WorkingDir
	}
	if over := len(config.Message().Encode()) - wire.MaxSize; over > 0 {
		return wire.Config{}, errs.New(errs.Invalid, "args, env: with the container's environment they are %d bytes too long", over)
	}
	return config, nil
}

func checkCommand(c driver.Command) error {
	var faults errs.Faults
	if len(c.Args) == 0 || c.Args[0] == "" {
		faults.Add("args", "names no program")
	}
	checkArgs(c.Args, &faults)
	checkEnv(c.Env, &faults)
	checkUser(c.User, false, &faults)
	checkPath("working_dir", c.WorkingDir, &faults)
	if c.Timeout < 0 || c.Timeout > maxTimeout {
		faults.Add("timeout", "is %d; use 1 to %d seconds", int64(c.Timeout.Seconds()), int64(maxTimeout.Seconds()))
	}
	return faults.Err()
}

// commandEnv returns the environment of a container with the variables of a command in place of its own.
func commandEnv(container []string, c driver.Command) []string {
	env := slices.DeleteFunc(slices.Clone(container), func(entry string) bool {
		// Only the first process reports by the socket. Another user has another home than the default one, which is then found out inside.
		return variable(entry) == "NOTIFY_SOCKET" || c.User != "" && entry == "HOME=/root"
	})
	return override(env, c.Env)
}
