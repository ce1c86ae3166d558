package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// BuildInit builds imageapi-init in dir, as `make build` does, and returns its bytes: what a test binary embeds may
// be of another day. Where there is no Go, as in a virtual machine, IMAGEAPI_INIT names a file to take instead.
func BuildInit(dir string) ([]byte, error) {
	if prebuilt, ok := os.LookupEnv("IMAGEAPI_INIT"); ok {
		return os.ReadFile(prebuilt)
	}
	path := filepath.Join(dir, "imageapi-init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/kraken-hpc/imageapi/cmd/imageapi-init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return os.ReadFile(path)
}
