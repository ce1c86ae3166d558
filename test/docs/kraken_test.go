package docs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/test/harness"
)

// nodeDefinition is what of a node's definition of Kraken's matters here.
type nodeDefinition struct {
	Extensions []struct {
		Type   string `json:"@type"`
		State  string `json:"state"`
		Images map[string]struct {
			Container map[string]any `json:"container"`
		} `json:"images"`
	} `json:"extensions"`
}

// ofVersion02 are the fields that Kraken's release knows, by the names of what they stand in. It refuses others.
var ofVersion02 = map[string][]string{
	"container": {"command", "id", "logfile", "mount", "name", "namespaces", "refs", "state", "systemd"},
	"mount":     {"attach", "bind", "id", "kind", "mountpoint", "nfs", "overlay", "refs"},
	"attach":    {"device_file", "id", "iscsi", "kind", "local", "loopback", "rbd", "refs"},
	"device":    {"attach", "fs_type", "mount_options"}, // the sub-object attach of a mount
	"bind":      {"base", "mount", "path", "recursive", "ro"},
	"nfs":       {"host", "options", "path", "ro", "version"},
	"overlay":   {"lower", "upperdir", "workdir"},
	"iscsi":     {"host", "initiator", "lun", "max_comands", "port", "queue_depth", "scheduler", "target"},
	"local":     {"path"},
	"loopback":  {"base", "mount", "path", "readPartitions"},
	"rbd":       {"device_id", "image", "monitors", "options", "pool", "snapshot"},
	"options":   {"name", "secret", "ro", "rw", "namespace"},
}

// newerThan02 are the fields that schemes use and version 0.2 does not have. A definition for Kraken leaves them out.
var newerThan02 = []string{"iscsi.ro"}

// TestNodeDefinitions: each example of a node's definition says what Kraken's release can read and is given to it under a name that it
// understands, and its container is the one of the same scheme, which that scheme's page sends to the server, without newerThan02.
func TestNodeDefinitions(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(harness.Root(), "docs/examples/node-*.json"))
	if err != nil || len(files) < 6 {
		t.Fatalf("%d definitions for six schemes: %v", len(files), err)
	}
	all := pages(t)
	for _, path := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "node-"), ".json")
		var node nodeDefinition
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, &node)
		}
		if err != nil || len(node.Extensions) != 1 || node.Extensions[0].Type != "type.googleapis.com/ImageAPI.ImageSet" {
			t.Errorf("node-%s.json: not a definition with the extension for images: %v", name, err)
			continue
		}
		for image, is := range node.Extensions[0].Images {
			if !regexp.MustCompile(`^[A-Za-z.\-_]+$`).MatchString(image) {
				t.Errorf("node-%s.json: Kraken does not understand the name %q", name, image)
			}
			for _, fault := range dropUnknownTo02("container", is.Container) {
				t.Errorf("node-%s.json: Kraken does not know %s", name, fault)
			}
			is.Container["name"] = image // as Kraken does
			if diff := sameAsExample(t, name, is.Container); diff != "" {
				t.Errorf("node-%s.json: %s", name, diff)
			}
		}
		server, _, _ := strings.Cut(name, "-")
		if page := all["docs/schemes/"+server+".md"]; !strings.Contains(page, "run docs/examples/container-"+name+".json") &&
			!strings.Contains(page, "docs/examples/container-"+name+".json | imageapi run -") {
			t.Errorf("docs/schemes/%s.md does not send container-%s.json", server, name)
		}
		if !strings.Contains(all["docs/kraken.md"], "(examples/node-"+name+".json)") {
			t.Errorf("docs/kraken.md does not show node-%s.json", name)
		}
	}
}

func sameAsExample(t *testing.T, name string, container map[string]any) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(harness.Root(), "docs/examples/container-"+name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]any
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&want); err != nil {
		t.Fatal(err)
	}
	for _, field := range dropUnknownTo02("container", want) {
		if !slices.Contains(newerThan02, field) {
			return fmt.Sprintf("container-%s.json has %s, which Kraken does not know", name, field)
		}
	}
	if !reflect.DeepEqual(container, want) {
		return fmt.Sprintf("its container is not that of container-%s.json:\n%v\n%v", name, container, want)
	}
	return ""
}

// dropUnknownTo02 deletes from a definition, below one of a kind, the fields that version 0.2 does not have, and returns them.
func dropUnknownTo02(kind string, def map[string]any) (unknown []string) {
	for field, value := range def {
		if !slices.Contains(ofVersion02[kind], field) {
			unknown = append(unknown, kind+"."+field)
			delete(def, field)
			continue
		}
		below := field
		if kind == "mount" && field == "attach" {
			below = "device"
		}
		if field == "lower" {
			for _, mount := range value.([]any) {
				unknown = append(unknown, dropUnknownTo02("mount", mount.(map[string]any))...)
			}
		}
		if object, ok := value.(map[string]any); ok {
			unknown = append(unknown, dropUnknownTo02(below, object)...)
		}
	}
	return unknown
}
