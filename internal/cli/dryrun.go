package cli

import (
	"net/http"

	"github.com/go-openapi/runtime"

	"github.com/kraken-hpc/imageapi/models"
)

// planReader reads the response to a dry run. The operations do not declare it, and the generated client would return an error.
type planReader struct{ plan *models.Plan }

// instead is an option of an operation: a plan that the server returns is kept here, and the operation returns blank.
func (p *planReader) instead(blank any) func(*runtime.ClientOperation) {
	return func(op *runtime.ClientOperation) {
		others := op.Reader
		op.Reader = runtime.ClientResponseReaderFunc(func(resp runtime.ClientResponse, consumer runtime.Consumer) (any, error) {
			if resp.Code() != http.StatusOK {
				return others.ReadResponse(resp, consumer)
			}
			p.plan = &models.Plan{}
			return blank, consumer.Consume(resp.Body(), p.plan)
		})
	}
}

// show shows the steps of a create.
func (p *planReader) show(a *app) error {
	if p.plan == nil {
		return fail(exitRefused, "this server does not support dry runs and has created the object; see imageapi list")
	}
	return a.show(p.plan, nil, func() { a.planTable(p.plan.Steps) })
}

// planTable writes a line for each step, and below it what is unknown.
func (a *app) planTable(steps []*models.PlanStep) {
	t := newTable("ACT", "LEVEL", "WHAT")
	for _, s := range steps {
		t.add(text(s.Act), text(s.Path), text(s.Does))
		for _, unknown := range s.Unknown {
			t.add(" ", " ", "unknown: "+unknown)
		}
	}
	a.table(t)
}
