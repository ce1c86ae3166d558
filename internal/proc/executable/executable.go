// Package executable finds the command of a container, and explains why it cannot be executed. Imageapi-init is built from it too, so it
// stays free of package fmt.
package executable

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// Root is the root directory of a container, as it is seen from inside or from the node.
type Root interface {
	// Open opens a path in it as open(2) does. The error is an errno.
	Open(path string, flags int) (fd int, err error)
}

// Find finds a command as execvp(3) does.
func Find(root Root, name string, env []string) (string, *wire.Failure) {
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
			if isExecutable(root, path) {
				return path, nil
			}
		}
	}
	return "", &wire.Failure{Reason: wire.NotInPath, Path: name, Detail: search}
}

func isExecutable(root Root, path string) bool {
	st, err := stat(root, path)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mode&0o111 != 0
}

// Examine tells why path can't be executed, as far as that can be seen in the file: execve(2) says ENOENT for a missing
// interpreter too and ENOEXEC for much. It returns nil if there is nothing to see.
func Examine(root Root, path string) *wire.Failure {
	interpreter, failure := examineFile(root, path)
	if failure != nil || interpreter == "" {
		return failure
	}
	switch _, failure := examineFile(root, interpreter); {
	case failure == nil:
		return nil
	case failure.Reason == wire.NotFound:
		return &wire.Failure{Reason: wire.NoInterpreter, Path: path, Detail: interpreter}
	default:
		return &wire.Failure{Reason: wire.BadInterpreter, Path: path, Detail: interpreter}
	}
}

func stat(root Root, path string) (st unix.Stat_t, err error) {
	fd, err := root.Open(path, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	err = unix.Fstat(fd, &st)
	return st, err
}

// examineFile looks at one file and names the interpreter it needs.
func examineFile(root Root, path string) (interpreter string, failure *wire.Failure) {
	st, err := stat(root, path)
	switch err {
	case nil:
	case unix.ENOENT, unix.ENOTDIR:
		return "", &wire.Failure{Reason: wire.NotFound, Path: path}
	default:
		return "", wire.Fail("look at", path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return "", &wire.Failure{Reason: wire.IsDirectory, Path: path}
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return "", &wire.Failure{Reason: wire.NotRegular, Path: path}
	case st.Mode&0o111 == 0:
		return "", &wire.Failure{Reason: wire.NotExecutable, Path: path}
	}
	file, err := root.Open(path, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return "", wire.Fail("open", path, err)
	}
	defer unix.Close(file)
	header := readAt(file, 0, 256)
	switch {
	case strings.HasPrefix(string(header), "#!"):
		return scriptInterpreter(string(header[2:])), nil
	case strings.HasPrefix(string(header), "\x7fELF"):
		return elfInterpreter(file, header, path)
	default:
		return "", &wire.Failure{Reason: wire.BadFormat, Path: path}
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
