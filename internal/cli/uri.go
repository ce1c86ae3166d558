package cli

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/kballard/go-shellquote"

	"github.com/kraken-hpc/imageapi/client/mounts"
	"github.com/kraken-hpc/imageapi/models"
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
	return overlaid(uri, &models.Container{Command: &o.command, Systemd: &o.systemd})
}

func overlaid(uri string, m *models.Container) (*definition, error) {
	if *m.Command == "" {
		m.Command = new("/sbin/init")
	}
	image := &models.Mount{Kind: models.MountKindURI, URI: &models.MountURI{URI: &uri}}
	m.Mount = &models.Mount{Kind: models.MountKindOverlay, Overlay: &models.MountOverlay{Lower: []*models.Mount{image}}}
	text, err := json.Marshal(m)
	return &definition{json: text}, err
}

// inRegistry matches images that have a configuration.
var inRegistry = regexp.MustCompile(`^oci(\+http)?://`)

// runConfigured runs an image of a registry as its configuration says. The server tells that of an image that is mounted, so the image is, until the
// container is there.
func (a *app) runConfigured(ctx context.Context, uri string, o creation) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	mounted, err := c.Mounts.MountContext(ctx, &mounts.MountParams{Mount: &models.Mount{Kind: models.MountKindURI, URI: &models.MountURI{URI: &uri, Ro: true}}})
	if err != nil {
		return err
	}
	m := configured(mounted.Payload)
	d, err := overlaid(uri, m)
	if err == nil {
		err = a.create(ctx, []*definition{d}, o)
	}
	return errors.Join(err, c.remove(context.WithoutCancel(ctx), ofMount(mounted.Payload), false))
}

// configured returns the container that the configuration of a mounted image describes.
func configured(m *models.Mount) *models.Container {
	container := &models.Container{Command: new("")}
	config := m.Attach.Attach.Oci.Config
	if config == nil {
		return container
	}
	if argv := slices.Concat(config.Entrypoint, config.Cmd); len(argv) > 0 {
		container.Command, container.Args = new(shellquote.Join(argv[0])), argv[1:]
	}
	last := map[string]int{} // of several entries for a name the last counts
	for at, entry := range config.Env {
		name, _, _ := strings.Cut(entry, "=")
		last[name] = at
	}
	for _, at := range slices.Sorted(maps.Values(last)) {
		container.Env = append(container.Env, config.Env[at])
	}
	container.User, container.WorkingDir = config.User, config.WorkingDir
	return container
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
