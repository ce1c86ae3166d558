// Package browser opens the reference of the API in a browser, as a reader does. It is a module of its own, so that what drives
// the browser is no dependency of the server.
package browser
