package dm

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A section tells which bytes of which device it shows, if it shows any as they are.
func TestShows(t *testing.T) {
	t.Parallel()
	for text, want := range map[Section]struct {
		device uint64
		offset int64
		ok     bool
	}{
		{Type: "linear", Params: "7:3 2048"}:                              {unix.Mkdev(7, 3), 1 << 20, true},
		{Type: "crypt", Params: "aes-xts-plain64 :64:logon:a 0 8:1 4096"}: {unix.Mkdev(8, 1), 2 << 20, true},
		{Type: "verity", Params: "1 7:0 7:1 4096 4096 1 0 sha256 0 0"}:    {unix.Mkdev(7, 0), 0, true},
		{Type: "striped", Params: "2 32 7:0 0 7:1 0"}:                     {},
		{Type: "linear", Params: "7:3"}:                                   {},
		{Type: "linear", Params: "/dev/sda 0"}:                            {},
		{Type: "error"}:                                                   {},
	} {
		device, offset, ok := text.Shows()
		if device != want.device || offset != want.offset || ok != want.ok {
			t.Errorf("%+v: %d, %d, %v", text, device, offset, ok)
		}
	}
}
