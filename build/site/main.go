// Command site makes the documentation site of the Markdown pages, before and after VitePress.
//
//	site stage DIRECTORY         copy the pages to DIRECTORY, with links that hold there, and write the sidebar
//	site pack DIRECTORY ZIP      pack what VitePress has built
//	site unpack ZIP DIRECTORY    write it as files that need no server
package main

import (
	"errors"
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "site:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "stage":
		return stage(".", args[1])
	case len(args) == 3 && args[0] == "pack":
		return pack(args[1], args[2])
	case len(args) == 3 && args[0] == "unpack":
		return unpack(args[1], args[2])
	}
	return errors.New("usage: site stage DIRECTORY | site pack DIRECTORY ZIP | site unpack ZIP DIRECTORY")
}
