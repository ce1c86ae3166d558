package cli

import (
	"net/http"

	"github.com/go-openapi/runtime"

	"github.com/kraken-hpc/imageapi/models"
)

// planReader takes the answer to a dry run. The operations do not declare it, and the generated client would call it an error.
type planReader struct{ plan *models.Plan }

// instead is an option of an operation: a plan that is answered is kept here, and the operation returns blank.
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

// foresee shows what a create would do.
func (a *app) foresee(ask func(*connection, *planReader) error) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	var p planReader
	if err := unwrapped(ask(c, &p)); err != nil {
		return err
	}
	if p.plan == nil {
		return fail(exitRefused, "this server knows no dry runs and has made it: imageapi list shows what there is")
	}
	return a.show(p.plan, func() { a.planTable(p.plan.Steps) })
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
	t.write(a.out, a.outWidth)
}
