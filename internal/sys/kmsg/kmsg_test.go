package kmsg

import "testing"

func TestLines(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text, subject string
		want          bool
	}{
		{"EXT4-fs (loop1): VFS: Can't find ext4 filesystem", "loop1", true},
		{"EXT4-fs (loop12): VFS: Can't find ext4 filesystem", "loop1", false},
		{"EXT4-fs (loop1p2): bad", "loop1", false},
		{"EXT4-fs (loop1p2): bad", "loop1p2", true},
		{"XFS (dm-0): bad", "dm-0", true},
		{"XFS (dm-01): bad", "dm-0", false},
		{"BTRFS error (device loop1 state M): bad", "loop1", true},
		{"bad thing on /dev/loop1", "loop1", true},
		{"overlayfs: conflicting lowerdir path", "overlayfs", true},
		{"anything", "", false},
	} {
		if got := About(test.subject)(test.text); got != test.want {
			t.Errorf("About(%q)(%q) = %v", test.subject, test.text, got)
		}
	}
	if got := recordText("6,339,5140900,-;EXT4-fs (loop1): a; b\n SUBSYSTEM=block\n"); got != "EXT4-fs (loop1): a; b" {
		t.Errorf("text of a record: %q", got)
	}
}
