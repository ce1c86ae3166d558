// Package keeperbin carries the program imageapi-keeper in the server's binary, as package initbin carries imageapi-init.
package keeperbin

import (
	"embed"
	"errors"
	"os"

	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
)

//go:embed *
var files embed.FS

// Program returns imageapi-keeper in sealed memory. The caller closes it.
func Program() (*os.File, error) {
	code, err := files.Open("imageapi-keeper")
	if err != nil {
		return nil, errors.New("this server was built without imageapi-keeper, which reads images on demand: build it with `make build`")
	}
	defer code.Close()
	return spawn.Copy("imageapi-keeper", code)
}
