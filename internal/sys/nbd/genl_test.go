package nbd

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAttributes(t *testing.T) {
	t.Parallel()
	b := append(text(7, "abc"), number32(8, 5)...)
	b = append(b, nested(9, number64(1, 6))...)
	if len(b)%4 != 0 {
		t.Errorf("%d bytes", len(b))
	}
	found := map[uint16][]byte{}
	parse(b, found)
	if string(found[7]) != "abc\x00" || found[8][0] != 5 || !bytes.Equal(found[9], number64(1, 6)) {
		t.Errorf("%v", found)
	}
	for n := range b {
		parse(b[:n], map[uint16][]byte{}) // cut off anywhere
	}
}

// TestUnknownFamily asks the real kernel for a family that no kernel has.
func TestUnknownFamily(t *testing.T) {
	t.Parallel()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		t.Fatal(err)
	}
	g := &genl{fd: fd, family: unix.GENL_ID_CTRL}
	defer g.close()
	if _, err := g.ask(unix.CTRL_CMD_GETFAMILY, text(unix.CTRL_ATTR_FAMILY_NAME, "imageapi-none")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("an unknown family: %v", err)
	}
	answer, err := g.ask(unix.CTRL_CMD_GETFAMILY, text(unix.CTRL_ATTR_FAMILY_NAME, "nlctrl"))
	if err != nil || len(answer[unix.CTRL_ATTR_FAMILY_ID]) != 2 {
		t.Errorf("the controller itself: %v, %v", answer, err)
	}
}

func TestNoDevice(t *testing.T) {
	t.Parallel()
	if _, err := Look(1 << 20); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a device that no kernel has: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(text(1, "x"))
	f.Fuzz(func(_ *testing.T, b []byte) { parse(b, map[uint16][]byte{}) })
}
