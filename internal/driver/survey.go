package driver

// Survey is what a node lacks for the objects of a driver.
type Survey struct {
	Missing  []string // in words
	Unusable bool     // no object can come up
}

// Lacks returns the survey of a driver that needs everything that was looked for: what was found is nil.
func Lacks(found ...error) (s Survey) {
	for _, err := range found {
		if err != nil {
			s.Missing, s.Unusable = append(s.Missing, err.Error()), true
		}
	}
	return s
}
