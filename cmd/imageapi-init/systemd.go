package main

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
)

// surround makes for systemd what it expects of a container's manager (https://systemd.io/CONTAINER_INTERFACE), and
// returns its terminal. mounts are the file systems of mountKernel.
func surround(config proto.Config, mounts map[string]int) (terminal int, failure *proto.Failure) {
	// 1. Its own part of the cgroup tree, and nothing of what is above: this is in its cgroup namespace already.
	point, err := openDir(mounts["sys"], "fs/cgroup")
	if err != nil {
		return -1, failed("open the mountpoint", "/sys/fs/cgroup", err)
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
			return -1, failed("open", "/dev/console", err)
		}
	}
	// 3. Who we are, and where to say that the system is up.
	notify, failure := makeRunHost(mounts["run"], config.Env)
	if failure != nil {
		return -1, failure
	}
	defer unix.Close(notify)
	rights := unix.UnixRights(master, terminal, notify)
	if err := unix.Sendmsg(proto.InitStatus, proto.Encode(proto.Console), rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return -1, failed("send descriptors", "", err)
	}
	return terminal, nil
}

// makeRunHost fills /run/host and returns the socket in it.
func makeRunHost(run int, env []string) (notify int, failure *proto.Failure) {
	if err := unix.Mkdirat(run, "host", 0o755); err != nil {
		return -1, failed("make the directory", "/run/host", err)
	}
	for file, variable := range map[string]string{"container-manager": "container=", "container-uuid": "container_uuid="} {
		// The first one counts, as for getenv(3).
		i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, variable) })
		if i < 0 {
			continue
		}
		if err := writeFile(run, "host/"+file, strings.TrimPrefix(env[i], variable)); err != nil {
			return -1, failed("write", "/run/host/"+file, err)
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
