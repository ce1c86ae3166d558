package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// BuildInit builds imageapi-init in dir, as `make build` does, and returns its bytes: what a test binary embeds may
// be of another day. Where there is no Go, as in a virtual machine, IMAGEAPI_INIT names a file to take instead.
func BuildInit(dir string) ([]byte, error) { return build(dir, "imageapi-init", "IMAGEAPI_INIT") }

// BuildKeeper is BuildInit for imageapi-keeper and IMAGEAPI_KEEPER.
func BuildKeeper(dir string) ([]byte, error) { return build(dir, "imageapi-keeper", "IMAGEAPI_KEEPER") }

func build(dir, name, variable string) ([]byte, error) {
	if prebuilt, ok := os.LookupEnv(variable); ok {
		return os.ReadFile(prebuilt)
	}
	path := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/kraken-hpc/imageapi/cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return os.ReadFile(path)
}
