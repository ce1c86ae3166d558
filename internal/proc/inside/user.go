package inside

import (
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// account is as whom a command runs.
type account struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// maxDatabase is how long an /etc/passwd or /etc/group may be: some 50,000 users. They come with an image, which may be
// hostile.
const maxDatabase = 4 << 20

// lookUp finds user[:group] in the files of the container. A number needs no entry; without a group it is the user's own,
// or its number, and those join that list the user.
func lookUp(spec string) (account, *wire.Failure) {
	name, group, hasGroup := strings.Cut(spec, ":")
	users, failure := readDatabase("/etc/passwd")
	if failure != nil {
		return account{}, failure
	}
	user, ok := findUser(users, name)
	if !ok {
		return account{}, unknown("the user", name, "/etc/passwd")
	}
	groups, failure := readDatabase("/etc/group")
	if failure != nil {
		return account{}, failure
	}
	a := account{uid: user.uid, gid: user.gid, home: user.home}
	if hasGroup {
		if a.gid, ok = findGroup(groups, group); !ok {
			return account{}, unknown("the group", group, "/etc/group")
		}
	} else {
		a.groups = memberships(groups, user.name)
	}
	// As initgroups(3) does: else a setgid program would be rid of it, and of what is forbidden to the group alone.
	if !slices.Contains(a.groups, a.gid) {
		a.groups = append(a.groups, a.gid)
	}
	return a, nil
}

func unknown(what, name, file string) *wire.Failure {
	return &wire.Failure{
		Reason: wire.Unfit, Field: "user", Act: "find " + what, Path: strconv.Quote(name),
		Detail: "not in the container's " + file + "; add it there, or give a number",
	}
}

// readDatabase returns what is in a file of the container, nothing if it is missing. It does not open what is no
// regular file, since to open a device may do something, and to open a pipe may wait.
func readDatabase(path string) (string, *wire.Failure) {
	unfit := func(detail string, err error) *wire.Failure {
		errno, _ := err.(unix.Errno)
		return &wire.Failure{Reason: wire.Unfit, Field: "user", Act: "read", Path: path, Detail: detail, Errno: errno}
	}
	handle, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return "", nil
	}
	if err != nil {
		return "", unfit("", err)
	}
	defer unix.Close(handle)
	var st unix.Stat_t
	if err := unix.Fstat(handle, &st); err != nil {
		return "", unfit("", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", unfit("not a regular file", nil)
	}
	file, err := unix.Open("/proc/self/fd/"+strconv.Itoa(handle), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", unfit("", err)
	}
	defer unix.Close(file)
	text, err := readSome(file, maxDatabase+1)
	switch {
	case err != nil:
		return "", unfit("", err)
	case len(text) > maxDatabase:
		return "", unfit("the file is longer than "+strconv.Itoa(maxDatabase>>20)+" MiB", nil)
	}
	return text, nil
}

// readSome reads a file to its end, or its first max bytes.
func readSome(file, max int) (string, error) {
	var text []byte
	for buf := make([]byte, 64<<10); len(text) < max; {
		n, err := unix.Read(file, buf[:min(len(buf), max-len(text))])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", err
		}
		if n == 0 {
			break
		}
		text = append(text, buf[:n]...)
	}
	return string(text), nil
}

// user is an entry of passwd(5).
type user struct {
	name     string
	uid, gid uint32
	home     string
}

// findUser returns the first entry with a name or, if who is a number, with that. A number without an entry is a user with
// the group root and the home directory /, who is listed in no group.
func findUser(passwd, who string) (user, bool) {
	number, isNumber := id(who)
	for line := range strings.Lines(passwd) {
		u, ok := parseUser(line)
		if ok && (isNumber && u.uid == number || !isNumber && u.name == who) {
			return u, true
		}
	}
	return user{uid: number, home: "/"}, isNumber
}

func parseUser(line string) (user, bool) {
	f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
	if len(f) < 4 || f[0] == "" {
		return user{}, false
	}
	uid, ok1 := id(f[2])
	gid, ok2 := id(f[3])
	u := user{name: f[0], uid: uid, gid: gid, home: "/"}
	if len(f) > 5 && strings.HasPrefix(f[5], "/") {
		u.home = f[5]
	}
	return u, ok1 && ok2
}

// findGroup returns the number of the first group with a name; a number stands for itself.
func findGroup(groups, which string) (uint32, bool) {
	if number, ok := id(which); ok {
		return number, true
	}
	for line := range strings.Lines(groups) {
		if name, gid, _, ok := parseGroup(line); ok && name == which {
			return gid, true
		}
	}
	return 0, false
}

// memberships returns the groups that list a user, each once.
func memberships(groups, name string) []uint32 {
	var found []uint32
	if name == "" {
		return nil
	}
	seen := map[uint32]bool{}
	for line := range strings.Lines(groups) {
		_, gid, members, ok := parseGroup(line)
		if !ok || seen[gid] {
			continue
		}
		for member := range strings.SplitSeq(members, ",") {
			if member == name && !seen[gid] {
				seen[gid] = true
				found = append(found, gid)
			}
		}
	}
	return found
}

// parseGroup splits a line of group(5).
func parseGroup(line string) (name string, gid uint32, members string, ok bool) {
	f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
	if len(f) < 3 || f[0] == "" {
		return "", 0, "", false
	}
	if len(f) > 3 {
		members = f[3]
	}
	gid, ok = id(f[2])
	return f[0], gid, members, ok
}

// id returns the number of a user or group. The largest one means "no change" to setresuid(2).
func id(text string) (uint32, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || uint32(n) == ^uint32(0) {
		return 0, false
	}
	return uint32(n), true
}
