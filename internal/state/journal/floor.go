package journal

import (
	"errors"
	"os"
	"strconv"
	"strings"
)

// step is how many ids are set aside at a time: so seldom is the file written.
const step = 1024

// floor is a file beside the journal with a number that no id given out has reached: should the journal be damaged, no id is
// given out twice all the same.
type floor struct {
	path string
	at   int64 // what is in the file, or 0 if that is not known
}

// raise makes sure that next, the smallest id that was never given out, is not above the floor.
func (f *floor) raise(next int64) error {
	if next <= f.at {
		return nil
	}
	at := next + step
	fresh := f.path + ".new"
	err := os.WriteFile(fresh, []byte(strconv.FormatInt(at, 10)+"\n"), fileMode)
	if err = errors.Join(err, os.Rename(fresh, f.path)); err != nil {
		return err
	}
	f.at = at
	return nil
}

// read returns the floor, or 1 if there is none.
func (f floor) read() int64 {
	text, err := os.ReadFile(f.path)
	if err != nil {
		return 1
	}
	at, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 1
	}
	return max(1, at)
}
