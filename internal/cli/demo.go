package cli

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/erofs/go-erofs"
	"github.com/spf13/cobra"
)

func (a *app) demoCommand() *cobra.Command {
	var version string
	c := &cobra.Command{
		Use: "demo-image FILE", Short: "Create a small image to try things with",
		Long: "Creates a small image file (EROFS) with a shell, from programs of this machine. Its /sbin/init prints a line and runs until it is stopped. Existing files are never replaced.",
		Example: `imageapi demo-image /tmp/images/demo.erofs
imageapi run file:///tmp/images/demo.erofs --name demo`,
		Args: between(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := writeDemo(args[0], version); err != nil {
				return fmt.Errorf("create the demo image: %w", err)
			}
			a.printf("%s created\n", args[0])
			return nil
		},
	}
	c.Flags().StringVar(&version, "image-version", "1", "version in /etc/os-release of the image: `TEXT`")
	return c
}

// demoTools are the programs of a demo image, as far as the node has them.
const demoTools = "sh cat echo env grep head hostname id ls mkdir mount ps rm seq sleep stty sync tail touch true tty uname yes"

const demoInit = `#!/bin/sh
# Prints a line and runs until it receives SIGTERM.
trap 'exit 0' TERM
echo "hello from $(hostname)"
while :; do sleep 3600 & wait $!; done
`

const demoRelease = `ID=imageapi-demo
PRETTY_NAME="ImageAPI demo"
IMAGE_ID=demo
IMAGE_VERSION=%s
`

// writeDemo creates a small image with the programs of this node. It never replaces a file, since a replaced image may be mounted.
func writeDemo(path, version string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	d := demo{erofs.Create(file), map[string]bool{}}
	err = errors.Join(d.fill(version), d.image.Close(), file.Close())
	if err != nil {
		_ = os.Remove(path)
	}
	return err
}

// demo is an image that is being written.
type demo struct {
	image *erofs.Writer
	has   map[string]bool // paths of the programs and libraries in it
}

func (d demo) fill(version string) error {
	for _, dir := range strings.Fields("/bin /dev /etc /proc /root /run /sbin /sys /tmp /usr /var") {
		if err := d.image.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return errors.Join(
		d.image.Chmod("/tmp", os.ModeDir|os.ModeSticky|0o777),
		d.write("/sbin/init", 0o755, strings.NewReader(demoInit)),
		d.write("/etc/os-release", 0o644, strings.NewReader(fmt.Sprintf(demoRelease, version))),
		d.write("/etc/passwd", 0o644, strings.NewReader("root:x:0:0:root:/root:/bin/sh\n")),
		d.tools(),
	)
}

// tools adds busybox, or else the node's own programs with their libraries.
func (d demo) tools() error {
	if path, err := exec.LookPath("busybox"); err == nil {
		err = d.program(path, "/bin/busybox")
		for _, name := range strings.Fields(demoTools) {
			err = errors.Join(err, d.image.Symlink("busybox", "/bin/"+name))
		}
		return err
	}
	for i, name := range strings.Fields(demoTools) {
		path, err := exec.LookPath(name)
		if err == nil {
			err = d.program(path, "/bin/"+name)
		} else if i > 0 {
			continue // only the shell is necessary
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// library is a line of the dynamic loader's list: NAME => PATH (ADDRESS), or PATH (ADDRESS) for the loader itself.
var library = regexp.MustCompile(`(?m)(/\S+) \(0x`)

// program adds a program under a path, and its libraries under theirs.
func (d demo) program(from, to string) error {
	loader, err := interpreter(from)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	if loader != "" {
		list, err := exec.Command(loader, "--list", from).Output()
		if err != nil {
			return fmt.Errorf("list the libraries of %s: %w", from, err)
		}
		for _, match := range library.FindAllSubmatch(append(list, loader+" (0x"...), -1) {
			if path := string(match[1]); !d.has[path] {
				d.has[path] = true
				if err := d.copy(path, path); err != nil {
					return err
				}
			}
		}
	}
	return d.copy(from, to)
}

// interpreter returns the dynamic loader of a program, or nothing if it is static.
func interpreter(path string) (string, error) {
	program, err := elf.Open(path)
	if err != nil {
		return "", err
	}
	defer program.Close()
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			name, err := io.ReadAll(p.Open())
			return string(bytes.TrimRight(name, "\x00")), err
		}
	}
	return "", nil
}

func (d demo) copy(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	return d.write(to, 0o755, in)
}

func (d demo) write(path string, mode os.FileMode, content io.Reader) error {
	out, err := d.image.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, content)
	return errors.Join(err, out.Chmod(mode), out.Close())
}
