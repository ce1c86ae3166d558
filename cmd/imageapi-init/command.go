package main

import (
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
)

// become executes the command in place of this program. It returns only if that fails.
func become(config proto.Config) *proto.Failure {
	path, failure := lookup(config.Args[0], config.Env)
	if failure != nil {
		return failure
	}
	send(proto.InitStatus, proto.Encode(proto.Ready))
	var blocked []int
	if config.Systemd && config.StopSignal == proto.SystemdStop {
		// Until systemd is ready for it the kernel would throw it away, since it has no handler. Blocked it waits.
		blocked = append(blocked, config.StopSignal)
	}
	if err := resetSignals(blocked...); err != nil {
		return failed("reset signals", "", err)
	}
	unix.Umask(0o022)
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return failed("keep descriptors from the command", "", err)
	}
	err := syscall.Exec(path, config.Args, config.Env)
	// A user may be forbidden to look at it: then what execve says is all there is to say.
	if failure := examine(path); failure != nil && failure.Reason != proto.Syscall {
		return failure
	}
	return failed(proto.ActExecute, path, err)
}

// lookup finds a command as execvp(3) does.
func lookup(name string, env []string) (string, *proto.Failure) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	search := ""
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, "PATH="); ok {
			search = value
		}
	}
	if name != "" {
		for dir := range strings.SplitSeq(search, ":") {
			path := dir + "/" + name
			if isExecutable(path) {
				return path, nil
			}
		}
	}
	return "", &proto.Failure{Reason: proto.NotInPath, Path: name, Detail: search}
}

func isExecutable(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mode&0o111 != 0
}

// examine tells why path can't be executed, as far as that can be seen in the file: execve(2) says ENOENT for a missing
// interpreter too and ENOEXEC for much. It returns nil if there is nothing to see.
func examine(path string) *proto.Failure {
	interpreter, failure := examineFile(path)
	if failure != nil || interpreter == "" {
		return failure
	}
	switch _, failure := examineFile(interpreter); {
	case failure == nil:
		return nil
	case failure.Reason == proto.NotFound:
		return &proto.Failure{Reason: proto.NoInterpreter, Path: path, Detail: interpreter}
	default:
		return &proto.Failure{Reason: proto.BadInterpreter, Path: path, Detail: interpreter}
	}
}

// examineFile looks at one file and names the interpreter it needs.
func examineFile(path string) (interpreter string, failure *proto.Failure) {
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); err {
	case nil:
	case unix.ENOENT, unix.ENOTDIR:
		return "", &proto.Failure{Reason: proto.NotFound, Path: path}
	default:
		return "", failed("look at", path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return "", &proto.Failure{Reason: proto.IsDirectory, Path: path}
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return "", &proto.Failure{Reason: proto.NotRegular, Path: path}
	case st.Mode&0o111 == 0:
		return "", &proto.Failure{Reason: proto.NotExecutable, Path: path}
	}
	file, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", failed("open", path, err)
	}
	defer unix.Close(file)
	header := readAt(file, 0, 256)
	switch {
	case strings.HasPrefix(string(header), "#!"):
		return scriptInterpreter(string(header[2:])), nil
	case strings.HasPrefix(string(header), "\x7fELF"):
		return elfInterpreter(file, header, path)
	default:
		return "", &proto.Failure{Reason: proto.BadFormat, Path: path}
	}
}

// scriptInterpreter returns the first word of a script's first line.
func scriptInterpreter(line string) string {
	line, _, _ = strings.Cut(line, "\n")
	words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' || r == 0 })
	if len(words) == 0 {
		return ""
	}
	return words[0]
}

// readAt reads up to n bytes.
func readAt(file int, offset int64, n int) []byte {
	buf := make([]byte, n)
	got, _ := unix.Pread(file, buf, offset)
	return buf[:max(got, 0)]
}
