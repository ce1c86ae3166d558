package executable

import "testing"

func TestScriptInterpreter(t *testing.T) {
	for line, want := range map[string]string{
		"/bin/sh\necho":       "/bin/sh",
		" /bin/sh -e\n":       "/bin/sh",
		"\t/usr/bin/env perl": "/usr/bin/env",
		"\n":                  "",
		"":                    "",
	} {
		if got := scriptInterpreter(line); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
