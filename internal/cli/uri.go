package cli

import (
	"encoding/json"
	"regexp"
)

// imageOptions are the options of run that describe a container whose image is given by a URI.
type imageOptions struct {
	systemd bool
	command string
}

var scheme = regexp.MustCompile(`^[a-z][a-z0-9+.-]*:`)

// isURI reports whether an argument names an image instead of a file with a definition.
func isURI(arg string) bool { return scheme.MatchString(arg) }

// definition returns the container that runs an image: an overlay over it, whose changes are in memory.
func (o imageOptions) definition(uri string) (*definition, error) {
	command := o.command
	if command == "" {
		command = "/sbin/init"
	}
	type object map[string]any
	image := object{"kind": "uri", "uri": object{"uri": uri}}
	text, err := json.Marshal(object{
		"command": command, "systemd": o.systemd,
		"mount": object{"kind": "overlay", "overlay": object{"lower": []any{image}}},
	})
	return &definition{json: text}, err
}

// read returns the definition that an argument of run names.
func (o imageOptions) read(a *app, arg string) (*definition, error) {
	if isURI(arg) {
		return o.definition(arg)
	}
	if o != (imageOptions{}) {
		return nil, usage("--systemd and --command are for an image given by a URI; write them into the definition %s", arg)
	}
	return a.readDefinition(arg)
}
