package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

const detachKeys = "ctrl-p,ctrl-q"

// errDetached ends a session whose user has typed the keys for that.
var errDetached = errors.New("detached")

func (a *app) attachCommand() *cobra.Command {
	var keys string
	c := &cobra.Command{
		Use: "attach CONTAINER", Short: "Connect to the console of a container",
		Long: `Connects the terminal with the console of a running container with systemd, which shows the output from now on. The container
continues when you detach.`,
		Example:           "imageapi attach node",
		ValidArgsFunction: a.offer(1, inState(true, "running")),
		Args:              between(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			sequence, err := parseKeys(keys)
			if err != nil {
				return err
			}
			return a.attach(c.Context(), args[0], keys, sequence)
		},
	}
	c.Flags().StringVar(&keys, "detach-keys", detachKeys, "`KEYS` that detach, separated by commas: letters, or ctrl- and a letter")
	return c
}

func (a *app) attach(ctx context.Context, name, keys string, sequence []byte) error {
	m, err := a.findContainer(ctx, name)
	if err != nil {
		return err
	}
	s, err := a.client.upgrade(ctx, "/container/attach", url.Values{"id": {strconv.FormatInt(int64(m.ID), 10)}})
	if err != nil {
		return err
	}
	if a.outWidth > 0 {
		_, _ = fmt.Fprintf(a.err, "attached to the console of %s; type %s to detach\n", ofContainer(m), keys)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	end, err := s.terminal(ctx, a, &detacher{in: a.in, keys: sequence, detach: func() { cancel(errDetached) }})
	switch {
	case errors.Is(err, errDetached):
		return nil
	case err != nil:
		return whenInterrupted(err, "interrupted")
	}
	return end.err()
}

// parseKeys returns the bytes that a terminal sends for keys.
func parseKeys(keys string) ([]byte, error) {
	var all []byte
	for key := range strings.SplitSeq(keys, ",") {
		letter, control := strings.CutPrefix(key, "ctrl-")
		if len(letter) != 1 || control && (letter[0]|0x20 < 'a' || letter[0]|0x20 > 'z') && !strings.Contains("@[]^_\\", letter) {
			return nil, usage("--detach-keys: %q is no key; give a letter, or ctrl- and a letter", key)
		}
		if control {
			all = append(all, letter[0]&0x1f)
		} else {
			all = append(all, letter[0])
		}
	}
	return all, nil
}

// detacher passes on what is typed until some keys are typed one after the other.
type detacher struct {
	in     io.Reader
	keys   []byte
	typed  int // how many of the keys
	detach func()
}

// Read implements io.Reader. Keys that may belong to the sequence are held back until that is known.
func (d *detacher) Read(b []byte) (int, error) {
	buf := make([]byte, max(1, len(b)-len(d.keys)))
	for {
		n, err := d.in.Read(buf)
		var out bytes.Buffer
		for _, c := range buf[:n] {
			if c != d.keys[d.typed] {
				out.Write(d.keys[:d.typed])
				d.typed = 0
			}
			if c != d.keys[d.typed] {
				out.WriteByte(c)
				continue
			}
			if d.typed++; d.typed == len(d.keys) {
				d.detach()
				return copy(b, out.Bytes()), io.EOF
			}
		}
		if err != nil {
			out.Write(d.keys[:d.typed])
			d.typed = 0
		}
		if out.Len() > 0 || err != nil {
			return copy(b, out.Bytes()), err
		}
	}
}
