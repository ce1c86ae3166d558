package cli

import (
	"context"
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
	var s server
	if _, err := flags.NewParser(&s, flags.None).ParseArgs(nil); err != nil {
		return nil
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
