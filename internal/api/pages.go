package api

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-openapi/runtime/server-middleware/negotiate/header"

	apidocs "github.com/kraken-hpc/imageapi/docs/api"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/restapi"
)

// Where the API is, and its reference.
const (
	basePath = "/imageapi/v1"
	docsPath = basePath + "/docs"
)

// docsPolicy lets the reference run what it has in itself and load nothing. The page has one too, which names its scripts.
const docsPolicy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; font-src data:; " +
	"worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// pages serves the specification and its reference; everything else goes to next. They are made ready when they are first asked
// for.
func pages(next http.Handler) http.Handler {
	swagger, openapi := specificationOf(restapi.SwaggerJSON), specificationOf(apidocs.OpenAPI)
	reference, guides := sync.OnceValues(newReference), sync.OnceValues(newSite)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		switch r.URL.Path {
		case "/swagger.json", basePath + "/swagger.json":
			serveDocument(w, r, swagger)
		case "/openapi.json", basePath + "/openapi.json":
			serveDocument(w, r, openapi)
		case docsPath + "/api/":
			serveDocument(w, r, reference)
		case docsPath + "/api", docsPath + "/api/index.html":
			http.Redirect(w, r, docsPath+"/api/", http.StatusFound)
		case "/", "/docs", "/docs/":
			http.Redirect(w, r, docsPath+"/", http.StatusFound)
		default:
			name, isGuide := strings.CutPrefix(r.URL.Path, docsPath)
			if !isGuide || name != "" && name[0] != '/' {
				next.ServeHTTP(w, r)
				return
			}
			serveDocument(w, r, func() (*document, error) {
				s, err := guides()
				if err != nil {
					return nil, err
				}
				return s.page(strings.TrimPrefix(name, "/"))
			})
		}
	})
}

// document is what is served from memory. Clients may keep it, but ask each time whether it is still the same: another
// version of the server has another one.
type document struct {
	contentType string
	policy      string // Content-Security-Policy, or none
	packed      []byte // by gzip
	tag         string // a weak one: it is the same for both encodings
	lasts       bool   // no other content ever has its address
}

func specificationOf(text []byte) func() (*document, error) {
	return sync.OnceValues(func() (*document, error) {
		packed, err := pack(text)
		return newDocument("application/json", "", packed), err
	})
}

func newReference() (*document, error) {
	packed, err := apidocs.Page()
	if err != nil {
		return nil, errs.New(errs.Unsupported, "read the reference: %w", err)
	}
	return newDocument("text/html; charset=utf-8", docsPolicy, packed), nil
}

func newDocument(contentType, policy string, packed []byte) *document {
	return &document{contentType: contentType, policy: policy, packed: packed, tag: fmt.Sprintf(`W/"%.12x"`, sha256.Sum256(packed))}
}

func serveDocument(w http.ResponseWriter, r *http.Request, get func() (*document, error)) {
	p, err := get()
	if err != nil {
		serveError(w, r, err)
		return
	}
	content := p.packed
	h := w.Header()
	if takesGzip(r) {
		h.Set("Content-Encoding", "gzip")
	} else if content, err = unpack(p.packed); err != nil {
		serveError(w, r, err)
		return
	}
	h.Set("Content-Type", p.contentType)
	if p.policy != "" {
		h.Set("Content-Security-Policy", p.policy)
	}
	h.Set("Cache-Control", "no-cache")
	if p.lasts {
		h.Set("Cache-Control", "max-age=31536000, immutable")
	}
	h.Set("ETag", p.tag)
	h.Set("Vary", "Accept-Encoding")
	h.Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

// takesGzip reports whether the client accepts compressed responses (RFC 9110, 12.5.3).
func takesGzip(r *http.Request) bool {
	return slices.ContainsFunc(header.ParseAccept(r.Header, "Accept-Encoding"), func(coding header.AcceptSpec) bool {
		return strings.EqualFold(coding.Value, "gzip") && coding.Q > 0
	})
}

func pack(content []byte) ([]byte, error) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	err := w.Close()
	return out.Bytes(), err
}

func unpack(packed []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// send writes a small page. The only error is that of a client that is gone.
func send(w http.ResponseWriter, contentType string, page []byte) {
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(page)
}
