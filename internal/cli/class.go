package cli

import (
	"strings"

	"github.com/jessevdk/go-flags"
)

// class is a class of objects as a user names it.
type class string

// UnmarshalFlag takes the plural, the singular and what lies between.
func (c *class) UnmarshalFlag(value string) error {
	switch strings.TrimSuffix(value, "s") {
	case "container":
		*c = classContainer
	case "mount":
		*c = classMount
	case "attach", "attachment":
		*c = classAttach
	default:
		return usage("there is no class %q: there are containers, mounts and attachments", value)
	}
	return nil
}

// Complete offers the classes to a shell.
func (c *class) Complete(prefix string) []flags.Completion {
	return completions(prefix, "containers", "mounts", "attachments")
}

func completions(prefix string, all ...string) (offered []flags.Completion) {
	for _, s := range all {
		if strings.HasPrefix(s, prefix) {
			offered = append(offered, flags.Completion{Item: s})
		}
	}
	return offered
}
