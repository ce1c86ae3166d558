// Package initbin carries the program imageapi-init in the server's binary.
//
// `make build` puts it into this directory before it builds the server; git does not keep it. Without it everything
// compiles, so that the sources can be looked at with the usual tools, but no container can be run.
package initbin

import (
	"embed"
	"errors"
	"os"

	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
)

//go:embed *
var files embed.FS

// Program returns imageapi-init in sealed memory. The caller closes it.
func Program() (*os.File, error) {
	code, err := files.Open("imageapi-init")
	if err != nil {
		return nil, errors.New("this server was built without imageapi-init, which runs containers: build it with `make build`")
	}
	defer code.Close()
	return spawn.Copy("imageapi-init", code)
}
