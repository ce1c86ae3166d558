package api

import (
	"net/http"

	apidocs "github.com/kraken-hpc/imageapi/docs/api"
	"github.com/kraken-hpc/imageapi/restapi"
)

// pages serves the specification and its reference, below base; everything else goes to next.
func pages(base string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			next.ServeHTTP(w, r)
			return
		}
		switch r.URL.Path {
		case "/swagger.json", base + "/swagger.json":
			send(w, "application/json", restapi.SwaggerJSON)
		case base + "/docs":
			send(w, "text/html; charset=utf-8", apidocs.Page)
		case "/", "/docs":
			http.Redirect(w, r, base+"/docs", http.StatusFound)
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
