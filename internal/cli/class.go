package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// The classes of objects, in the server's words.
const (
	classContainer = "container"
	classMount     = "mount"
	classAttach    = "attach"
)

// classNames are the classes as a user names them.
func classNames() []string { return []string{"containers", "mounts", "attachments"} }

func states() []string {
	return []string{"created", "running", "paused", "stopping", "exited", "dead"}
}

func phases() []string { return []string{"pending", "ready", "stopping", "broken"} }

func mountKinds() []string { return []string{"attach", "bind", "nfs", "overlay", "uri"} }

func attachKinds() []string {
	return []string{"http", "iscsi", "local", "loopback", "nvme", "oci", "rbd"}
}

func kinds() []string { return append(mountKinds(), attachKinds()...) }

// parseClasses returns classes for their names: the plural, the singular, and the server's own.
func parseClasses(names []string) (classes []string, err error) {
	for _, name := range names {
		class := strings.TrimSuffix(name, "s")
		if class == "attachment" {
			class = classAttach
		}
		if !slices.Contains([]string{classContainer, classMount, classAttach}, class) {
			return nil, usage("unknown class %q%s", name, didYouMean(name, classNames(), "use containers, mounts or attachments"))
		}
		classes = append(classes, class)
	}
	return classes, nil
}

// offerClasses offers the classes that are not on the command line to a shell.
func offerClasses(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return slices.DeleteFunc(classNames(), func(name string) bool { return slices.Contains(args, name) }), cobra.ShellCompDirectiveNoFileComp
}
