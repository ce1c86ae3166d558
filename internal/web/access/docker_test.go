package access

import (
	"encoding/base64"
	"strings"
	"testing"
)

func TestDockerConfig(t *testing.T) {
	t.Parallel()
	pair := base64.StdEncoding.EncodeToString([]byte("user:pass:word"))
	for name, c := range map[string]struct {
		file, registry string
		want           Credentials
		fault          string
	}{
		"a pair":              {`{"auths":{"h:5000":{"auth":"` + pair + `"}}}`, "h:5000", Credentials{User: "user", Password: "pass:word"}, ""},
		"a URL":               {`{"auths":{"https://h/v2/":{"username":"u","password":"p"}}}`, "h", Credentials{User: "u", Password: "p"}, ""},
		"Docker Hub":          {`{"auths":{"https://index.docker.io/v1/":{"identitytoken":"t"}}}`, "registry-1.docker.io", Credentials{Refresh: "t"}, ""},
		"a token":             {`{"auths":{"h":{"registrytoken":"t"}}}`, "h", Credentials{Bearer: "t"}, ""},
		"others have helpers": {`{"auths":{"h":{"auth":"` + pair + `"}},"credHelpers":{"other":"x"}}`, "h", Credentials{User: "user", Password: "pass:word"}, ""},
		"a helper":            {`{"auths":{"h":{"auth":"` + pair + `"}},"credHelpers":{"h":"site"}}`, "h", Credentials{}, `the credential helper "site"`},
		"a store":             {`{"auths":{"h":{}},"credsStore":"desktop"}`, "h", Credentials{}, `the credential helper "desktop"`},
		"another port":        {`{"auths":{"h:1":{"auth":"` + pair + `"}}}`, "h:2", Credentials{}, "has no credentials for h:2"},
		"no pair":             {`{"auths":{"h":{"auth":"Y2FuYXJ5"}}}`, "h", Credentials{}, "a malformed entry for h"},
		"no JSON":             {`canary`, "h", Credentials{}, "not in the format"},
	} {
		got, err := FromDockerConfig([]byte(c.file), c.registry)
		if c.fault != "" {
			if err == nil || !strings.Contains(err.Error(), c.fault) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || *got != c.want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
