package cli

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/internal/printable"
	"github.com/kraken-hpc/imageapi/models"
)

func (a *app) applyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "apply FILE...", Short: "Create containers, or replace those that differ",
		Long: "Creates each container that the files define, or replaces the one of the same name if the definition has changed since the last apply. Without a change it changes nothing. A directory stands for its .json, .yaml and .yml files.",
		Example: `imageapi apply app.yaml
imageapi apply /etc/containers.d`,
		Args: between(1, -1), Annotations: slowly("applying"),
		RunE: func(c *cobra.Command, args []string) error {
			files, err := a.readDefinitions(args)
			if err != nil {
				return err
			}
			wanted := make([]*models.Container, len(files))
			for i, d := range files {
				if wanted[i], err = d.named(); err != nil {
					return err
				}
			}
			var failed []error
			for i, m := range wanted {
				failed = append(failed, files[i].located(a.apply(c.Context(), m)))
			}
			return errors.Join(failed...)
		},
	}
}

// named returns the container that a definition defines, which must have a name.
func (d *definition) named() (*models.Container, error) {
	class, err := d.classOf()
	if err != nil {
		return nil, err
	}
	if class != classContainer {
		return nil, usage("apply is for containers, and this defines another object; use create")
	}
	m, err := decode[models.Container](class, d)
	if err == nil && m.Name == "" {
		err = usage("container.name: is required; apply finds the container by its name")
	}
	return m, err
}

// appliedLabel has the digest of the definition that was applied. The fields of the object do not show a change reliably: the server adds
// defaults, and does not return secrets.
const appliedLabel = "imageapi/applied"

// seal returns a digest of a definition that is slow to compute, since a reader of labels could guess a password in it.
func seal(m *models.Container, salt []byte) (string, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	const iterations, bytes = 100_000, 16
	key, err := pbkdf2.Key(sha256.New, string(text), salt, iterations, bytes)
	return hex.EncodeToString(salt) + ":" + hex.EncodeToString(key), err
}

// sealed reports whether a label is the seal of a definition.
func sealed(m *models.Container, label string) bool {
	before, _, _ := strings.Cut(label, ":")
	salt, err := hex.DecodeString(before)
	if err != nil || label == "" {
		return false
	}
	now, err := seal(m, salt)
	return err == nil && now == label
}

func (a *app) apply(ctx context.Context, m *models.Container) error {
	w, err := a.load(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(w.Containers, func(old *models.Container) bool { return old.Name == m.Name })
	if i >= 0 && sealed(m, w.Containers[i].Labels[appliedLabel]) {
		return a.applyState(ctx, w.Containers[i], m.State)
	}
	salt := make([]byte, 8)
	_, _ = rand.Read(salt)
	label, err := seal(m, salt)
	if err != nil {
		return err
	}
	labels := maps.Clone(m.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[appliedLabel] = label
	m.Labels = labels
	var done *models.Container
	how := "replaced"
	switch {
	case i < 0:
		how = "created"
		done, err = a.createContainer(ctx, m)
	case w.Containers[i].State == models.ContainerStateRunning:
		done, err = a.applyReplace(ctx, w.Containers[i], m)
	default:
		done, err = a.swap(ctx, w.Containers[i], m)
	}
	if err = unwrapped(err); err != nil {
		return whenInterrupted(err, "interrupted: the server may continue; see imageapi list")
	}
	return a.applied(done, how)
}

func (a *app) applied(m *models.Container, how string) error {
	o := ofContainer(m)
	return a.show(m, []object{o}, func() { a.printf("%s\n", printable.Text(fmt.Sprintf("%s is %s, %s", o, o.state, how))) })
}

// applyState starts a container that has ended and should run.
func (a *app) applyState(ctx context.Context, m *models.Container, wanted models.ContainerState) error {
	if wanted != models.ContainerStateRunning || m.State == models.ContainerStateRunning || m.State == models.ContainerStatePaused {
		return a.applied(m, "unchanged")
	}
	m, err := a.setStateOf(ctx, m, "running")
	if err != nil {
		return err
	}
	return a.applied(m, "started")
}

func (a *app) createContainer(ctx context.Context, m *models.Container) (*models.Container, error) {
	answer, err := a.client.Containers.CreateContainerContext(ctx, &containers.CreateContainerParams{Container: m})
	if err != nil {
		return nil, err
	}
	return answer.Payload, nil
}

// applyReplace replaces a running container. Fields that the definition leaves out are removed, for which the body has nulls.
func (a *app) applyReplace(ctx context.Context, old, m *models.Container) (*models.Container, error) {
	fields, _ := generic(m).(map[string]any)
	body := map[string]any{}
	for _, name := range fieldNames(reflect.TypeFor[models.ContainerReplacement]()) {
		if name != "probe" {
			body[name] = fields[name]
		}
	}
	id, tag := int64(old.ID), strconv.Quote(strconv.FormatInt(old.Generation, 10))
	done, later, err := a.client.Containers.ReplaceContainerContext(ctx, &containers.ReplaceContainerParams{ID: &id, IfMatch: &tag}, withBody(body))
	switch {
	case err != nil:
		return nil, err
	case done == nil:
		return a.replaced(ctx, later.Payload.Container)
	}
	return done.Payload.Container, nil
}

// swap puts a new container in the place of one that does not run. The old one keeps its name if the new one cannot be created.
func (a *app) swap(ctx context.Context, old, m *models.Container) (*models.Container, error) {
	old, err := a.patch(ctx, old, map[string]any{"name": nil})
	if err != nil {
		return nil, err
	}
	done, err := a.createContainer(ctx, m)
	if err != nil {
		_, back := a.patch(context.WithoutCancel(ctx), old, map[string]any{"name": m.Name})
		return nil, errors.Join(err, back)
	}
	return done, a.client.remove(ctx, ofContainer(old), false)
}
