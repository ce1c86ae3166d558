package spectest

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	httptransport "github.com/go-openapi/runtime/client"
	"github.com/go-openapi/strfmt"

	"github.com/kraken-hpc/imageapi/client"
	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/models"
)

// This file compiles only if source code that was written for the generated client of version 0.1.2 still does. It contains the forms of
// expression in which Kraken's module uses that client: a change of a name, of a type or of the number of results is found here.

// imageClient is the part of a client that Kraken's module uses.
type imageClient struct{ *client.Imageapi }

func newImageClient(hostAndPort, base string) imageClient {
	return imageClient{client.New(httptransport.New(hostAndPort, base, []string{"http"}), strfmt.Default)}
}

// problem is an error of the interface, as its clients read it: they look for no wrapped error and dereference the message.
type problem struct {
	code int64
	text string
}

func problemOf(err error) (problem, bool) {
	var payload *models.Error
	if e, ok := err.(*containers.ListContainersDefault); ok {
		payload = e.Payload
	}
	if e, ok := err.(*containers.CreateContainerDefault); ok {
		payload = e.Payload
	}
	if e, ok := err.(*containers.SetContainerStateDefault); ok {
		payload = e.Payload
	}
	if e, ok := err.(*containers.DeleteContainerDefault); ok {
		payload = e.Payload
	}
	if payload == nil {
		return problem{}, false
	}
	return problem{payload.Code, *payload.Message}, true
}

func (c imageClient) list() ([]*models.Container, error) {
	answer, err := c.Containers.ListContainers(containers.NewListContainersParams())
	if err != nil {
		return nil, err
	}
	return answer.GetPayload(), nil
}

func (c imageClient) create(def *models.Container) error {
	params := containers.NewCreateContainerParams()
	params.Container = def
	_, err := c.Containers.CreateContainer(params)
	return err
}

func (c imageClient) stop(name string) error {
	params := containers.NewSetContainerStateParams()
	params.Name = &name
	params.State = string(models.ContainerStateExited)
	_, err := c.Containers.SetContainerState(params)
	return err
}

func (c imageClient) remove(name string) error {
	params := containers.NewDeleteContainerParams()
	params.Name = &name
	_, err := c.Containers.DeleteContainer(params)
	return err
}

// definition has every field of 0.2's models in it, each with its Go type of then.
func definition() *models.Container {
	text, yes, number := "x", true, int64(1)
	var id models.ID = 3
	rbd := &models.AttachRbd{
		Monitors: []string{text}, Pool: &text, Image: &text, Snapshot: text, DeviceID: number,
		Options: &models.RbdOptions{Fsid: text, IP: text, Namespace: text, Share: yes, Noshare: yes, Crc: yes, Ro: yes, Rw: yes, LockTimeout: number},
	}
	iscsi := &models.AttachIscsi{
		Initiator: &text, Target: &text, Host: &text, Port: &number, Lun: number, MaxComands: &number, QueueDepth: &number, Scheduler: &text,
	}
	device := &models.Attach{
		ID: id, Kind: models.AttachKindRbd, DeviceFile: text, Refs: number, Rbd: rbd, Iscsi: iscsi, Local: &models.AttachLocal{Path: &text},
		Loopback: &models.AttachLoopback{Path: &text, Base: &text, Mount: &models.Mount{}, ReadPartitions: &yes},
	}
	mount := &models.Mount{
		ID: id, Kind: models.MountKindOverlay, Mountpoint: text, Refs: number,
		Attach:  &models.MountAttach{Attach: device, FsType: &text, MountOptions: []string{text}},
		Bind:    &models.MountBind{Path: &text, Base: &text, Mount: &models.Mount{}, Recursive: &yes, Ro: &yes},
		Nfs:     &models.MountNfs{Host: &text, Path: &text, Ro: &yes, Version: &text, Options: []string{text}},
		Overlay: &models.MountOverlay{Lower: []*models.Mount{{ID: id}}, Upperdir: text, Workdir: text},
	}
	return &models.Container{
		ID: id, Name: models.Name(text), Mount: mount, Command: &text, Systemd: &yes, State: models.ContainerStateRunning, Logfile: text,
		Namespaces: []models.ContainerNamespace{models.ContainerNamespacePid}, Refs: number,
	}
}

// TestSourceOfOldClients runs that code against a server that has canned answers, one success and one failure for each operation.
func TestSourceOfOldClients(t *testing.T) {
	t.Parallel()
	fail := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		status, body := http.StatusOK, `{"id":3,"name":"web","state":"running","mount":{"id":2},"command":"x","generation":1,"future":{"a":1}}`
		switch {
		case fail:
			status, body = http.StatusConflict, `{"code":409,"message":"no","type":"conflict","errors":[{"path":"a"}]}`
		case r.Method == http.MethodPost:
			status = http.StatusCreated
		case r.Method == http.MethodGet:
			body = "[" + body + "]"
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	defer server.Close()
	c := newImageClient(strings.TrimPrefix(server.URL, "http://"), "/imageapi/v1")
	text, err := json.Marshal(definition())
	if err != nil || !strings.Contains(string(text), `"max_comands":1`) {
		t.Fatalf("%v: %s", err, text)
	}
	for _, fail = range []bool{false, true} {
		found, listed := c.list()
		for name, err := range map[string]error{
			"list": listed, "create": c.create(definition()), "stop": c.stop("web"), "delete": c.remove("web"),
		} {
			p, known := problemOf(err)
			if fail && (!known || p.code != http.StatusConflict || p.text != "no") || !fail && err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if !fail && (len(found) != 1 || found[0].Name != "web" || string(found[0].State) != "running") {
			t.Errorf("listed: %+v", found)
		}
	}
}
