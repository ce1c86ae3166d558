package access

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// dockerConfig is Docker's config.json.
type dockerConfig struct {
	Auths       map[string]dockerAuth `json:"auths"`
	CredsStore  string                `json:"credsStore"`
	CredHelpers map[string]string     `json:"credHelpers"`
}

type dockerAuth struct {
	Auth          string `json:"auth"` // USER:PASSWORD in base64
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// FromDockerConfig returns the credentials for a registry, HOST[:PORT], in a file of Docker's form. No error contains a part of the file but names
// of helpers and registries.
func FromDockerConfig(data []byte, registry string) (*Credentials, error) {
	var c dockerConfig
	if json.Unmarshal(data, &c) != nil {
		return nil, errors.New("is not in the format of Docker's config.json")
	}
	for name, helper := range c.CredHelpers {
		if hostOf(name) == registry {
			return nil, fmt.Errorf("names the credential helper %q, which the server does not execute: write user and password for %s into auths", helper, registry)
		}
	}
	for name, entry := range c.Auths {
		if hostOf(name) != registry || entry == (dockerAuth{}) {
			continue
		}
		if entry.Auth != "" {
			text, err := base64.StdEncoding.DecodeString(entry.Auth)
			user, password, ok := strings.Cut(string(text), ":")
			if err != nil || !ok {
				return nil, fmt.Errorf("has a malformed entry for %s", registry)
			}
			entry.Username, entry.Password = user, strings.TrimRight(password, "\x00")
		}
		return &Credentials{User: entry.Username, Password: entry.Password, Refresh: entry.IdentityToken, Bearer: entry.RegistryToken}, nil
	}
	if c.CredsStore != "" {
		return nil, fmt.Errorf("names the credential helper %q, which the server does not execute: write user and password for %s into auths", c.CredsStore, registry)
	}
	return nil, fmt.Errorf("has no credentials for %s", registry)
}

// hostOf is the registry of a name in the file, which may be a URL.
func hostOf(name string) string {
	if _, rest, ok := strings.Cut(name, "://"); ok {
		name = rest
	}
	name, _, _ = strings.Cut(name, "/")
	if name == "docker.io" || name == "index.docker.io" {
		return "registry-1.docker.io" // where its images are
	}
	return name
}
