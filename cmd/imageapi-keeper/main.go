// Command imageapi-keeper serves one network block device from a web server. imageapi-server starts it; it is no program for users.
package main

import (
	"os"

	"github.com/kraken-hpc/imageapi/internal/web/keep"
)

func main() {
	if len(os.Args) != 2 || keep.Hide() != nil {
		os.Exit(2)
	}
	if err := keep.Main(os.Args[1]); err != nil {
		os.Exit(1)
	}
}
