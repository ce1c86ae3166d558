package extent

import "testing"

// Extents overlap if they have a byte of the same file or device in common.
func TestOverlap(t *testing.T) {
	t.Parallel()
	has := []Extent{{Dev: 1, Inode: 2, Start: 512, End: 1024}, {Dev: 3, End: 512}}
	for other, want := range map[Extent]bool{
		{Dev: 1, Inode: 2, Start: 1023, End: 4096}: true,
		{Dev: 1, Inode: 2, End: 513}:               true,
		{Dev: 1, Inode: 2, End: 4096}:              true,
		{Dev: 1, Inode: 2, Start: 600, End: 601}:   true,
		{Dev: 3, Start: 511, End: 512}:             true,
		{Dev: 1, Inode: 2, Start: 1024, End: 4096}: false,
		{Dev: 1, Inode: 2, End: 512}:               false,
		{Dev: 1, Inode: 3, End: 4096}:              false,
		{Dev: 1, End: 4096}:                        false,
		{Dev: 3, Inode: 2, End: 4096}:              false,
	} {
		if Overlap(has, []Extent{other}) != want || Overlap([]Extent{other}, has) != want {
			t.Errorf("%+v: not %v", other, want)
		}
	}
}
