package inside

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// surround makes for systemd what it expects of a container's manager (https://systemd.io/CONTAINER_INTERFACE), and
// returns its terminal. mounts are the file systems of mountKernel.
func surround(config wire.Config, mounts map[string]int) (terminal int, failure *wire.Failure) {
	// 1. Its own part of the cgroup tree, and nothing of what is above: this is in its cgroup namespace already.
	point, err := openDir(mounts["sys"], "fs/cgroup")
	if err != nil {
		return -1, wire.Fail("open the mountpoint", "/sys/fs/cgroup", err)
	}
	if _, failure := attach(filesystem{kind: "cgroup2", attrs: noSetuid | noDevice | noExec}, point); failure != nil {
		return -1, failure
	}
	// 2. A console, whose other end the supervisor reads.
	master, terminal, failure := makeConsole(mounts["dev"])
	if failure != nil {
		return -1, failure
	}
	defer unix.Close(master)
	for _, output := range []int{1, 2} {
		if err := unix.Dup3(terminal, output, 0); err != nil {
			return -1, wire.Fail("open", "/dev/console", err)
		}
	}
	// 3. Who we are, and where to say that the system is up.
	notify, failure := makeRunHost(mounts["run"], config.Env)
	if failure != nil {
		return -1, failure
	}
	defer unix.Close(notify)
	if err := wire.Send(wire.InitStatus, wire.Message{Kind: wire.Console, Files: []int{master, terminal, notify}}); err != nil {
		return -1, wire.Fail("send descriptors", "", err)
	}
	return terminal, nil
}

// makeRunHost fills /run/host and returns the socket in it.
func makeRunHost(run int, env []string) (notify int, failure *wire.Failure) {
	if err := unix.Mkdirat(run, "host", 0o755); err != nil {
		return -1, wire.Fail("make the directory", "/run/host", err)
	}
	for file, variable := range map[string]string{"container-manager": "container=", "container-uuid": "container_uuid="} {
		// The first one counts, as for getenv(3).
		i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, variable) })
		if i < 0 {
			continue
		}
		if err := writeFile(run, "host/"+file, strings.TrimPrefix(env[i], variable)); err != nil {
			return -1, wire.Fail("write", "/run/host/"+file, err)
		}
	}
	return makeNotify(run)
}

func writeFile(dir int, path, text string) error {
	file, err := unix.Openat(dir, path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	_, err = unix.Write(file, []byte(text))
	return err
}

// makeNotify makes the socket that the first process tells its readiness to (sd_notify(3)): host/notify in /run.
func makeNotify(run int) (int, *wire.Failure) {
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, wire.Fail("make a socket", "", err)
	}
	if err := unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		return -1, wire.Fail("ask for senders", "", err)
	}
	// bind(2) takes no directory but the current one.
	if err := unix.Fchdir(run); err != nil {
		return -1, wire.Fail("enter", "/run", err)
	}
	if err := unix.Bind(socket, &unix.SockaddrUnix{Name: "host/notify"}); err != nil {
		return -1, wire.Fail("bind", "/run/host/notify", err)
	}
	return socket, nil
}
