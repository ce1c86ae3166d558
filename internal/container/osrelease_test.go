package container

import (
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/models"
)

func TestParseOSRelease(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		text string
		want models.OsRelease
	}{
		"usual":   {"NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nVERSION_ID=\"13\"\nIMAGE_ID='app'\nIMAGE_VERSION=7\n", models.OsRelease{PrettyName: "Debian GNU/Linux 13 (trixie)", VersionID: "13", ImageID: "app", ImageVersion: "7"}},
		"escapes": {`PRETTY_NAME="a \"b\" \\ \$c"`, models.OsRelease{PrettyName: `a "b" \ $c`}},
		"hostile": {"PRETTY_NAME=\"\x1b]0;title\a\u202e\"\nVERSION_ID=\xff\n", models.OsRelease{PrettyName: `\x1b]0;title\a\u202e`, VersionID: `\xff`}},
		"long":    {"IMAGE_ID=" + strings.Repeat("x", 1000), models.OsRelease{ImageID: strings.Repeat("x", 256) + "…"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := parseOSRelease([]byte(c.text)); got == nil || *got != c.want {
				t.Errorf("%+v", got)
			}
		})
	}
	if got := parseOSRelease([]byte("NAME=x\n")); got != nil {
		t.Errorf("without any of them: %+v", got)
	}
}
