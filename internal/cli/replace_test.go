package cli

import "testing"

// A replace sends null for the fields that it removes, and not the fields that stay.
func TestChangesOfAReplace(t *testing.T) {
	t.Parallel()
	all, err := parse([]byte(`{"name": "app", "state": "running", "labels": null, "hostname": "b"}`))
	if err != nil || len(all) != 1 {
		t.Fatal(err)
	}
	body, err := all[0].changes("/bin/check --fast", false)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"labels": "null", "hostname": `"b"`, "probe": `{"args":["/bin/check","--fast"]}`}
	for name, value := range want {
		if string(body[name]) != value {
			t.Errorf("%s is %s", name, body[name])
		}
	}
	if len(body) != len(want) {
		t.Errorf("the body is %s", body)
	}
}
