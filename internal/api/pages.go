package api

import (
	"net/http"

	"github.com/go-openapi/loads"

	apidocs "github.com/kraken-hpc/imageapi/docs/api"
)

// pages serves the specification and its reference; everything else goes to next.
func pages(doc *loads.Document, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			next.ServeHTTP(w, r)
			return
		}
		switch r.URL.Path {
		case "/swagger.json", doc.BasePath() + "/swagger.json":
			send(w, "application/json", doc.Raw())
		case doc.BasePath() + "/docs":
			send(w, "text/html; charset=utf-8", apidocs.Page)
		case "/", "/docs":
			http.Redirect(w, r, doc.BasePath()+"/docs", http.StatusFound)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// send writes a page. The only error is that of a client that is gone.
func send(w http.ResponseWriter, contentType string, page []byte) {
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(page)
}
