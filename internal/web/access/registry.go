package access

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/kraken-hpc/imageapi/internal/web/source"
)

// Registry is a repository in a registry of OCI images.
type Registry struct {
	Host       string `json:"host"` // and port
	Repository string `json:"repository"`
}

// sender returns what gets a token of the registry for the credentials, and another one when that expires.
func (r *Registry) sender(c *Credentials) func(*http.Client, *http.Request) (*http.Response, error) {
	cache, scope := auth.NewCache(), registry.Reference{Registry: r.Host, Repository: r.Repository}
	credential := func(_ context.Context, host string) (auth.Credential, error) {
		if c == nil || host != r.Host {
			return auth.EmptyCredential, nil
		}
		return auth.Credential{Username: c.User, Password: c.Password, RefreshToken: c.Refresh, AccessToken: c.Bearer}, nil
	}
	return func(client *http.Client, request *http.Request) (*http.Response, error) {
		a := auth.Client{Client: client, Cache: cache, ClientID: "imageapi", Credential: credential}
		ctx := auth.AppendRepositoryScope(request.Context(), scope, auth.ActionPull)
		response, err := a.Do(request.WithContext(ctx))
		return response, refusal(err)
	}
}

// refusal marks an error as final if the registry will not change its mind.
func refusal(err error) error {
	answer, ok := errors.AsType[*errcode.ErrorResponse](err)
	switch {
	case ok && answer.StatusCode < 500 && answer.StatusCode != http.StatusTooManyRequests && answer.StatusCode != http.StatusRequestTimeout:
		return &source.Refusal{Status: answer.StatusCode, Reason: fmt.Sprintf("the registry refuses (%d); check auth and the permissions of the image", answer.StatusCode)}
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return &source.Refusal{Status: http.StatusUnauthorized, Reason: "the registry wants credentials (401); set auth"}
	case errors.Is(err, errdef.ErrNotFound):
		return &source.Refusal{Status: http.StatusNotFound, Reason: "the registry has no such image (404); check the reference"}
	}
	return err
}

// Resolve asks the registry for the digest of a tag. It fetches no content.
func (a Access) Resolve(ctx context.Context, tag string, plainHTTP bool) (string, error) {
	config, err := a.Source()
	if err != nil {
		return "", err
	}
	client := config.Client()
	client.CheckRedirect = follow
	defer client.CloseIdleConnections()
	r := remote.Repository{
		Client: sendFunc(func(request *http.Request) (*http.Response, error) {
			request.Header.Set("User-Agent", "imageapi")
			return config.Send(client, request)
		}),
		Reference: registry.Reference{Registry: a.Registry.Host, Repository: a.Registry.Repository}, PlainHTTP: plainHTTP,
	}
	found, err := r.Resolve(ctx, tag)
	return found.Digest.String(), refusal(err)
}

// follow refuses redirects from https to http, and long chains.
func follow(r *http.Request, before []*http.Request) error {
	if last := before[len(before)-1]; len(before) > 5 || last.URL.Scheme == "https" && r.URL.Scheme != "https" {
		return &source.Refusal{Status: http.StatusFound, Reason: "the registry redirects from https to http, or too often"}
	}
	return nil
}

type sendFunc func(*http.Request) (*http.Response, error)

// Do implements remote.Client.
func (f sendFunc) Do(r *http.Request) (*http.Response, error) { return f(r) }
