package cli

import (
	"cmp"
	"context"
	"os"
	"strconv"
	"time"

	"github.com/jessevdk/go-flags"
)

// completionTime is how long a shell waits for the names of objects.
const completionTime = time.Second

// target is an object as a user names it; see parseReference.
type target string

// Complete offers containers' names and the ids of all others to a shell. It asks the server of $IMAGEAPI_HOST, since options of
// the same command line are not known here.
func (t *target) Complete(prefix string) []flags.Completion {
	ctx, cancel := context.WithTimeout(context.Background(), completionTime)
	defer cancel()
	s := server{
		Host: cmp.Or(os.Getenv("IMAGEAPI_HOST"), defaultHost),
		Cert: os.Getenv("IMAGEAPI_CERT"), Key: os.Getenv("IMAGEAPI_KEY"), CA: os.Getenv("IMAGEAPI_CA"),
	}
	c, err := s.client(func(string) {})
	if err != nil {
		return nil
	}
	w, err := c.load(ctx)
	if err != nil {
		return nil
	}
	var all []string
	for _, o := range w.objects() {
		if o.name != "" {
			all = append(all, o.name)
		} else {
			all = append(all, strconv.FormatInt(o.id, 10))
		}
	}
	return completions(prefix, all...)
}

// complete answers a shell that asks how a command line could go on.
func (a *app) complete(items []flags.Completion) {
	a.completed = true
	for _, i := range items {
		a.printf("%s\n", i.Item)
	}
}

type completionCommand struct{}

const completionScript = `_imageapi() {
	local IFS=$'\n'
	COMPREPLY=($(GO_FLAGS_COMPLETION=1 "${COMP_WORDS[0]}" "${COMP_WORDS[@]:1:COMP_CWORD}" 2> /dev/null))
}
complete -o default -F _imageapi imageapi
`

func (*completionCommand) run(_ context.Context, a *app) error {
	a.printf("%s", completionScript)
	return nil
}
