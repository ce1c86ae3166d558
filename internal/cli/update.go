package cli

import (
	"context"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/go-openapi/runtime"
	"github.com/go-openapi/strfmt"
	"github.com/spf13/cobra"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/models"
)

// changing are the options of update.
type changing struct {
	labels, resources        []string
	restart                  string
	maxRestarts, stopTimeout int64
}

func (a *app) updateCommand() *cobra.Command {
	var o changing
	c := &cobra.Command{
		Use: "update CONTAINER [FILE]", Short: "Change a container",
		Long: "Changes labels, limits, the restart policy and the stop timeout of a container without restarting it. FILE contains the fields that change, in JSON or YAML. null removes a field, and - is standard input. To change the image or the command, use replace.",
		Example: `imageapi update app --label job=4711 --label user=
imageapi update app --resource memory=2G --resource pids=100
imageapi update app --restart always`,
		Args: between(1, 2), ValidArgsFunction: a.offer(1, anyContainer), Annotations: slowly("updating"),
		RunE: func(c *cobra.Command, args []string) error {
			change := map[string]any{}
			if len(args) > 1 {
				file, err := a.readDefinition(args[1])
				if err == nil {
					err = json.Unmarshal(file.json, &change)
				}
				if err != nil {
					return usage("read the change: %w", err)
				}
			}
			m, err := a.findContainer(c.Context(), args[0])
			if err != nil {
				return err
			}
			if err := o.addTo(change, m, c.Flags().Changed); err != nil {
				return err
			}
			if len(change) == 0 {
				return usage("nothing to change; give a file or options, see imageapi update --help")
			}
			return a.update(c.Context(), m, change)
		},
	}
	c.Flags().StringArrayVarP(&o.labels, "label", "l", nil, "set a label: `KEY=VALUE`; an empty value removes it; repeat it for several")
	c.Flags().StringArrayVar(&o.resources, "resource", nil, "set a limit: `NAME=VALUE`, as memory=2G, cpu_quota=50000 or pids=100; an empty value removes it; repeat it for several")
	choice(c, "restart", "`WHEN` the server restarts it: no, on-failure or always", setter(&o.restart), "no", "on-failure", "always")
	c.Flags().Int64Var(&o.maxRestarts, "max-restarts", 0, "maximum `NUMBER` of restarts in a row; 0 for no limit")
	c.Flags().Int64Var(&o.stopTimeout, "stop-timeout", 0, "how many `SECONDS` it has to end when it is asked to stop; 0 for the default")
	return c
}

// addTo adds the options that were given to a change of m.
func (c *changing) addTo(change map[string]any, m *models.Container, given func(string) bool) error {
	for name, value := range map[string]any{"restart": c.restart, "max-restarts": c.maxRestarts, "stop-timeout": c.stopTimeout} {
		if given(name) {
			change[strings.ReplaceAll(name, "-", "_")] = value
		}
	}
	if len(c.labels) > 0 {
		labels := maps.Clone(m.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		for _, given := range c.labels {
			key, value, ok := strings.Cut(given, "=")
			if !ok || key == "" {
				return usage("--label %q: give a name and a value, such as job=4711", given)
			}
			if labels[key] = value; value == "" {
				delete(labels, key)
			}
		}
		change["labels"] = labels
	}
	if len(c.resources) == 0 {
		return nil
	}
	resources, limits := map[string]any{}, fieldNames(reflect.TypeFor[models.ContainerResources]())
	if m.Resources != nil {
		resources, _ = generic(m.Resources).(map[string]any)
	}
	for _, given := range c.resources {
		key, value, ok := strings.Cut(given, "=")
		if !ok || key == "" {
			return usage("--resource %q: give a name and a value, such as memory=2G", given)
		}
		if !slices.Contains(limits, key) { // the server would ignore it, with a warning
			return usage("--resource %q: unknown limit%s", given, didYouMean(key, limits, "use one of "+strings.Join(limits, ", ")))
		}
		if resources[key] = amount(value); value == "" {
			delete(resources, key)
		}
	}
	change["resources"] = resources
	return nil
}

// amount returns a number, also with a suffix such as G for a power of 1024, or else the text.
func amount(text string) any {
	if n, err := units.RAMInBytes(text); err == nil && !strings.Contains(text, ".") {
		return n
	}
	return text
}

func (a *app) update(ctx context.Context, m *models.Container, change map[string]any) error {
	m, err := a.patch(ctx, m, change)
	if err != nil {
		return err
	}
	return a.showOne(ofContainer(m))
}

// patch changes a container that must still be as m is.
func (a *app) patch(ctx context.Context, m *models.Container, change map[string]any) (*models.Container, error) {
	id, tag := int64(m.ID), strconv.Quote(strconv.FormatInt(m.Generation, 10))
	answer, err := a.client.Containers.UpdateContainerContext(ctx, &containers.UpdateContainerParams{ID: &id, IfMatch: &tag}, withBody(change))
	if err != nil {
		return nil, unwrapped(err)
	}
	return answer.Payload, nil
}

// withBody sends a body that the generated model can't express: one with nulls.
func withBody(body any) func(*runtime.ClientOperation) {
	return func(op *runtime.ClientOperation) {
		others := op.Params
		op.Params = runtime.ClientRequestWriterFunc(func(r runtime.ClientRequest, formats strfmt.Registry) error {
			if err := others.WriteToRequest(r, formats); err != nil {
				return err
			}
			return r.SetBodyParam(body)
		})
	}
}

func (a *app) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rename CONTAINER NEW", Short: "Give a container another name", Long: "Gives a container another name. It continues to run.",
		Example: "imageapi rename app web", Args: between(2, 2), ValidArgsFunction: a.offer(1, anyContainer), Annotations: slowly("renaming"),
		RunE: func(c *cobra.Command, args []string) error {
			m, err := a.findContainer(c.Context(), args[0])
			if err != nil {
				return err
			}
			if args[1] == "" {
				return usage("the new name is empty")
			}
			return a.update(c.Context(), m, map[string]any{"name": args[1]})
		},
	}
}
