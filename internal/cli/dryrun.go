package cli

import "github.com/kraken-hpc/imageapi/models"

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
