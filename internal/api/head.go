package api

import "net/http"

// head serves HEAD as GET without a body. The operations whose bodies come as things happen have no HEAD: it would have no end.
func head(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead || r.URL.Path == basePath+"/events" || r.URL.Path == basePath+"/container/log" {
			next.ServeHTTP(w, r)
			return
		}
		get := r.WithContext(r.Context())
		get.Method = http.MethodGet
		next.ServeHTTP(bodiless{w}, get)
	})
}

// bodiless drops what is written of a body.
type bodiless struct{ http.ResponseWriter }

func (w bodiless) Write(b []byte) (int, error) { return len(b), nil }

// Unwrap is for http.ResponseController.
func (w bodiless) Unwrap() http.ResponseWriter { return w.ResponseWriter }
