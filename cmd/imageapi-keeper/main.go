// Command imageapi-keeper serves one network block device from a web server, or merges the layers of an image. imageapi-server starts it; it is
// no program for users.
package main

import (
	"os"

	"github.com/kraken-hpc/imageapi/internal/web/keep"
)

func main() {
	if len(os.Args) < 2 || keep.Hide() != nil {
		os.Exit(2)
	}
	var err error
	if os.Args[1] == keep.Merger {
		err = keep.Merge()
	} else {
		err = keep.Main(os.Args[1])
	}
	if err != nil {
		os.Exit(1)
	}
}
