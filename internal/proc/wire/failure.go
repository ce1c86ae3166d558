package wire

import "syscall"

// Failure tells why an act or a start failed.
type Failure struct {
	Reason Reason
	Act    string // verb and noun, such as "mount proc"
	Path   string // or the option of a file system that was refused
	Detail string
	Errno  syscall.Errno
	Field  string   // of the definition, that is to blame, such as "binds[0].target"; or empty
	Words  []string // what else the kernel said
}

// Reason says of what sort a Failure is.
type Reason string

// The reasons.
const (
	Syscall        Reason = "system call"        // Act on Path failed with Errno
	MissingDirs    Reason = "missing dirs"       // the image can't be written and lacks the directories in Path, separated by spaces
	NotDirectory   Reason = "not a directory"    // the mountpoint Path of the image is something else, or a link
	NotFound       Reason = "not found"          // there is no file Path
	NotInPath      Reason = "not in path"        // no file Path in the directories Detail
	IsDirectory    Reason = "directory"          // Path is a directory
	NotRegular     Reason = "not regular"        // Path is a device, a pipe or a socket
	NotExecutable  Reason = "not executable"     // Path has no permission to be executed
	NoInterpreter  Reason = "no interpreter"     // Path needs the interpreter Detail, which is missing
	BadInterpreter Reason = "bad interpreter"    // Path needs the interpreter Detail, which can't be executed
	WrongMachine   Reason = "wrong architecture" // Path is for the machine Detail, an ELF number (elf(5), e_machine)
	BadFormat      Reason = "bad format"         // Path is neither a program nor a script with #!
	Unfit          Reason = "unfit"              // Act on Path, as Field asks for, can't be done in this container: Errno says why, or Detail, or both
	Died           Reason = "died"               // the process ended: Detail says how
)

// ActExecute is the Act of a Failure to execute the command.
const ActExecute = "execute"

// Fail makes a Failure of a system call's error.
func Fail(act, path string, err error) *Failure {
	errno, ok := err.(syscall.Errno)
	if !ok {
		return &Failure{Reason: Died, Act: act, Path: path, Detail: err.Error()}
	}
	return &Failure{Reason: Syscall, Act: act, Path: path, Errno: errno}
}

// Error returns a terse text, for debugging; the daemon makes its own sentences.
func (f *Failure) Error() string {
	return string(f.Reason) + ": " + f.Act + " " + f.Path + " " + f.Detail + ": " + f.Errno.Error()
}

func (f *Failure) table(t *Table) {
	t.Text("reason", (*string)(&f.Reason))
	t.Text("act", &f.Act)
	t.Text("path", &f.Path)
	t.Text("detail", &f.Detail)
	Number(t, "errno", (*uintptr)(&f.Errno))
	t.Text("field", &f.Field)
	t.List("words", &f.Words)
}

// Message encodes f. Long texts are cut.
func (f *Failure) Message() Message {
	g := *f
	for _, text := range []*string{&g.Act, &g.Path, &g.Detail} {
		*text = cut(*text)
	}
	g.Words = nil
	for _, w := range f.Words {
		g.Words = append(g.Words, cut(w))
	}
	return Message{Kind: Failed, Fields: Fields(g.table)}
}

// ParseFailure decodes a Failed message.
func ParseFailure(m Message) (*Failure, error) {
	f := &Failure{}
	return f, ParseFields(m.Fields, f.table)
}

// cut keeps a text as short as the longest path is.
func cut(s string) string {
	const longest = 4096
	return s[:min(len(s), longest)]
}
