package api

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/go-openapi/analysis"
	"github.com/go-openapi/loads"
	"github.com/go-openapi/swag/mangling"

	"github.com/kraken-hpc/imageapi/restapi"
	"github.com/kraken-hpc/imageapi/restapi/operations/attachments"
	"github.com/kraken-hpc/imageapi/restapi/operations/containers"
	"github.com/kraken-hpc/imageapi/restapi/operations/mounts"
)

// Every default of a query parameter in swagger.yaml is the one that is applied.
func TestDefaultsOfQueries(t *testing.T) {
	t.Parallel()
	doc, err := loads.Embedded(restapi.SwaggerJSON, restapi.FlatSwaggerJSON)
	if err != nil {
		t.Fatal(err)
	}
	params := map[string]any{
		"attach":             attachments.NewAttachParams(),
		"mount":              mounts.NewMountParams(),
		"create_container":   containers.NewCreateContainerParams(),
		"delete_attach":      attachments.NewDeleteAttachParams(),
		"delete_mount":       mounts.NewDeleteMountParams(),
		"delete_container":   containers.NewDeleteContainerParams(),
		"replace_container":  containers.NewReplaceContainerParams(),
		"read_container_log": containers.NewReadContainerLogParams(),
		"wait_for_container": containers.NewWaitForContainerParams(),
	}
	tested := 0
	names := mangling.NewNameMangler()
	for _, method := range analysis.New(doc.Spec()).Operations() {
		for _, op := range method {
			for _, p := range op.Parameters {
				if p.Default == nil {
					continue
				}
				tested++
				bound := reflect.ValueOf(params[op.ID]).FieldByName(names.ToGoName(p.Name))
				if got := fmt.Sprint(bound.Elem()); got != fmt.Sprint(p.Default) {
					t.Errorf("%s of %s is %s by default; the specification says %v", p.Name, op.ID, got, p.Default)
				}
			}
		}
	}
	if tested < len(params) {
		t.Errorf("%d defaults were found", tested)
	}
}
