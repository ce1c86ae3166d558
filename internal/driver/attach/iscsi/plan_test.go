package iscsi_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/iscsi"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

const diskIQN = "iqn.2026-05.org.example:disk"

func TestPlanWrong(t *testing.T) {
	t.Parallel()
	d := iscsi.New(iscsi.Options{})
	for name, c := range map[string]struct {
		def   string
		paths []string
	}{
		"nothing":           {`{"kind":"iscsi","iscsi":{}}`, []string{"iscsi.host", "iscsi.initiator", "iscsi.target"}},
		"no IQN":            {`{"kind":"iscsi","iscsi":{"initiator":"i","target":"t","host":"h"}}`, []string{"iscsi.initiator", "iscsi.target"}},
		"long":              {def("iqn."+strings.Repeat("a", 220), ""), []string{"iscsi.target"}},
		"blank":             {def("iqn.a b", ""), []string{"iscsi.target"}},
		"control":           {def("iqn.a\u0085b", ""), []string{"iscsi.target"}},
		"host with port":    {def(diskIQN, `,"host":"h:3260"`), []string{"iscsi.host"}},
		"host with slash":   {def(diskIQN, `,"host":"h/x"`), []string{"iscsi.host"}},
		"port":              {def(diskIQN, `,"port":0`), []string{"iscsi.port"}},
		"high port":         {def(diskIQN, `,"port":65536`), []string{"iscsi.port"}},
		"portals":           {def(diskIQN, `,"portals":["good","bad:port","",":1"]`), []string{"iscsi.portals[1]", "iscsi.portals[2]", "iscsi.portals[3]"}},
		"lun":               {def(diskIQN, `,"lun":-1`), []string{"iscsi.lun"}},
		"high lun":          {def(diskIQN, `,"lun":16384`), []string{"iscsi.lun"}},
		"digest":            {def(diskIQN, `,"header_digest":"CRC32C","data_digest":"md5"`), []string{"iscsi.data_digest", "iscsi.header_digest"}},
		"commands":          {def(diskIQN, `,"max_comands":100`), []string{"iscsi.max_comands"}},
		"few commands":      {def(diskIQN, `,"max_comands":16`), []string{"iscsi.max_comands"}},
		"queue":             {def(diskIQN, `,"queue_depth":0`), []string{"iscsi.queue_depth"}},
		"deep queue":        {def(diskIQN, `,"queue_depth":114`), []string{"iscsi.queue_depth"}},
		"scheduler":         {def(diskIQN, `,"scheduler":"none\nx"`), []string{"iscsi.scheduler"}},
		"replacement":       {def(diskIQN, `,"replacement_timeout":0`), []string{"iscsi.replacement_timeout"}},
		"auth":              {def(diskIQN, `,"auth":{}`), []string{"iscsi.auth.secret", "iscsi.auth.username"}},
		"echo":              {def(diskIQN, `,"auth":{"username":"u","target_username":"t"}`), []string{"iscsi.auth.secret", "iscsi.auth.target_secret"}},
		"one secret twice":  {def(diskIQN, `,"auth":{"username":"u","secret":"s","target_username":"t","target_secret":"s"}`), []string{"iscsi.auth.target_secret"}},
		"no target's name":  {def(diskIQN, `,"auth":{"username":"u","secret":"s","target_secret":"t"}`), []string{"iscsi.auth.target_username"}},
		"secret twice":      {def(diskIQN, `,"auth":{"username":"u","secret":"s","secret_file":"/f","target_username":"t","target_secret":"x","target_secret_file":"f"}`), []string{"iscsi.auth.secret_file", "iscsi.auth.target_secret_file"}},
		"relative file":     {def(diskIQN, `,"auth":{"username":"u","secret_file":"f","target_secret_file":"/f"}`), []string{"iscsi.auth.secret_file", "iscsi.auth.target_username"}},
		"control character": {def(diskIQN, `,"auth":{"username":"u\u0000CHAP_R=1","secret":"s"}`), []string{"iscsi.auth.username"}},
		"long secret":       {def(diskIQN, fmt.Sprintf(`,"auth":{"username":"u","secret":%q}`, strings.Repeat("s", 256))), []string{"iscsi.auth.secret"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var faults errs.Faults
			d.Plan(drivertest.Object(t, driver.Attach, c.def), &faults)
			var got []string
			for _, f := range faults {
				got = append(got, f.Path)
			}
			slices.Sort(got)
			if !slices.Equal(got, c.paths) {
				t.Errorf("faults at %q, want %q (%v)", got, c.paths, faults.Err())
			}
		})
	}
}

// The answer and the journal hold everything but the secrets.
func TestShow(t *testing.T) {
	t.Parallel()
	d := iscsi.New(iscsi.Options{})
	given := def(diskIQN, `,"port":3261,"portals":["other:3262"],"lun":3,"ro":true,"header_digest":"crc32c","max_comands":64,"queue_depth":8,
		"scheduler":"noop","replacement_timeout":30,
		"auth":{"username":"user","secret":"usersecret12","target_username":"target","target_secret":"targetsecret"}`)
	u, _ := drivertest.Plan(t, d, given)
	out := driver.Object{Attach: &models.Attach{}}
	u.Show(out, driver.Status{}, nil)
	shown, err := json.Marshal(out.Attach.Iscsi)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"auth":{"username":"user","target_username":"target"},"data_digest":"none","header_digest":"crc32c","host":"127.0.0.1",` +
		`"initiator":"iqn.2026-05.org.example:node","lun":3,"max_comands":64,"port":3261,"portals":["other:3262"],"queue_depth":8,` +
		`"replacement_timeout":30,"ro":true,"scheduler":"none","target":"iqn.2026-05.org.example:disk"}`
	if canonical(t, shown) != canonical(t, []byte(want)) {
		t.Errorf("shows %s\nwant  %s", shown, want)
	}
	journal, err := json.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(shown), string(journal), fmt.Sprintf("%v %+v %#v %s", u, u, u, u)} {
		for _, secret := range []string{"usersecret12", "targetsecret"} {
			if strings.Contains(text, secret) {
				t.Errorf("gives a secret away: %s", text)
			}
		}
	}
}

func canonical(t *testing.T, text []byte) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// The paths of the secrets' files are answered and remembered, so that the answer can be sent again as it is.
func TestSecretFiles(t *testing.T) {
	t.Parallel()
	d := iscsi.New(iscsi.Options{})
	const auth = `"username":"user","secret_file":"/etc/chap/node","target_username":"target","target_secret_file":"/etc/chap/target"`
	u, _ := drivertest.Plan(t, d, def(diskIQN, `,"auth":{`+auth+`}`))
	journal, err := json.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	out := driver.Object{Attach: &models.Attach{}}
	u.Show(out, driver.Status{}, nil)
	shown, err := json.Marshal(out.Attach.Iscsi.Auth)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(journal), string(shown)} {
		if !strings.Contains(text, `"secret_file":"/etc/chap/node"`) || !strings.Contains(text, `"target_secret_file":"/etc/chap/target"`) {
			t.Errorf("the files are not in %s", text)
		}
	}
}
