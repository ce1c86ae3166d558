package block_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

const mib = 1 << 20

// disk partitions an image of 64 MiB with sfdisk(8), the reference, and returns its content.
func disk(t testing.TB, script string) []byte {
	t.Helper()
	return partition(t, blank(t), script)
}

// disk4K does the same with sectors of 4096 bytes, for which sfdisk needs a device.
func disk4K(t testing.TB, script string) []byte {
	t.Helper()
	testkit.Root(t)
	testkit.Need(t, "losetup")
	device := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", "--sector-size", "4096", blank(t)))
	defer testkit.Run(t, "losetup", "-d", device)
	return partition(t, device, script)
}

func blank(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 64*mib); err != nil {
		t.Fatal(err)
	}
	return path
}

func partition(t testing.TB, path, script string) []byte {
	t.Helper()
	testkit.Need(t, "sfdisk")
	cmd := exec.Command("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

const (
	gptScript     = "label: gpt\nstart=1MiB, size=8MiB\nstart=16MiB, size=4MiB\n"
	logicalScript = "label: dos\nstart=1MiB, size=4MiB\nstart=8MiB, size=40MiB, type=5\nstart=9MiB, size=8MiB\nstart=20MiB, size=4MiB\n"
)

func TestReadTable(t *testing.T) {
	t.Parallel()
	two := []block.Partition{{Index: 1, Start: mib, Size: 8 * mib}, {Index: 2, Start: 16 * mib, Size: 4 * mib}}
	for name, c := range map[string]struct {
		script string
		want   []block.Partition
	}{
		"gpt": {gptScript, two},
		"gpt gaps": {"label: gpt\n5: start=1MiB, size=1MiB\n3: start=4MiB, size=1MiB\n", []block.Partition{
			{Index: 3, Start: 4 * mib, Size: mib}, {Index: 5, Start: mib, Size: mib},
		}},
		"gpt empty": {"label: gpt\n", nil},
		"dos":       {"label: dos\nstart=1MiB, size=8MiB\nstart=16MiB, size=4MiB\n", two},
		"dos empty": {"label: dos\n", nil},
		"dos logical": {logicalScript, []block.Partition{
			{Index: 1, Start: mib, Size: 4 * mib}, {Index: 5, Start: 9 * mib, Size: 8 * mib}, {Index: 6, Start: 20 * mib, Size: 4 * mib},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := bytes.NewReader(disk(t, c.script))
			sector := block.TableSector(r)
			got, err := block.ReadTable(r, r.Size(), sector)
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("with sectors of %d: %+v, %v; want %+v", sector, got, err, c.want)
			}
		})
	}
}

func TestReadTable4K(t *testing.T) {
	r := bytes.NewReader(disk4K(t, gptScript))
	if sector := block.TableSector(r); sector != 4096 {
		t.Errorf("sectors of %d", sector)
	}
	got, err := block.ReadTable(r, r.Size(), 4096)
	want := []block.Partition{{Index: 1, Start: mib, Size: 8 * mib}, {Index: 2, Start: 16 * mib, Size: 4 * mib}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

// The copy at the end serves when the table at the beginning is damaged.
func TestReadTableFromCopy(t *testing.T) {
	t.Parallel()
	content := disk(t, gptScript)
	for name, at := range map[string]int{"header": 512 + 56, "entries": 1024 + 40} {
		damaged := slices.Clone(content)
		damaged[at] ^= 1
		parts, err := block.ReadTable(bytes.NewReader(damaged), 64*mib, 512)
		if err != nil || len(parts) != 2 {
			t.Errorf("%s: %+v, %v", name, parts, err)
		}
	}
}

// reseal makes the checksums of a GPT right again, at the beginning; the copy at the end is destroyed.
func reseal(content []byte) {
	clear(content[len(content)-512:])
	header := content[512:1024]
	if length := int(binary.LittleEndian.Uint32(header[80:])) * int(binary.LittleEndian.Uint32(header[84:])); length < 1<<20 {
		binary.LittleEndian.PutUint32(header[88:], crc32.ChecksumIEEE(content[1024:1024+length]))
	}
	clear(header[16:20])
	binary.LittleEndian.PutUint32(header[16:], crc32.ChecksumIEEE(header[:92]))
}

// An image is untrusted: whatever its table claims ends in an error that says so.
func TestReadTableRefuses(t *testing.T) {
	t.Parallel()
	le := binary.LittleEndian
	gptDisk, logicalDisk := disk(t, gptScript), disk(t, logicalScript)
	// The disks are made one at a time: they are large.
	gpt := func(change func(b []byte)) func() []byte {
		return func() []byte {
			content := slices.Clone(gptDisk)
			change(content)
			reseal(content)
			return content
		}
	}
	logical := func(change func(b []byte)) func() []byte {
		return func() []byte {
			content := slices.Clone(logicalDisk)
			change(content)
			return content
		}
	}
	plain := func(content []byte) func() []byte { return func() []byte { return content } }
	const ebr, link = 8 * mib, 446 + 16
	for name, c := range map[string]struct {
		content func() []byte
		want    string
	}{
		"nothing":         {plain(make([]byte, mib)), "lacks the signature"},
		"one sector":      {plain(make([]byte, 512)), "lacks the signature"},
		"no sector":       {plain(make([]byte, 100)), "the disk has 0"},
		"boot sector":     {logical(func(b []byte) { b[446] = 0x55 }), "boot sector without one"},
		"entry size 0":    {gpt(func(b []byte) { le.PutUint32(b[512+84:], 0) }), "not supported"},
		"entry size huge": {gpt(func(b []byte) { le.PutUint32(b[512+84:], 1<<31) }), "not supported"},
		"count huge":      {gpt(func(b []byte) { le.PutUint32(b[512+80:], 1<<32-1) }), "not supported"},
		"entries far":     {gpt(func(b []byte) { le.PutUint64(b[512+72:], 1<<63+5) }), "points to sector"},
		"entries at end":  {gpt(func(b []byte) { le.PutUint64(b[512+72:], 64*mib/512-1) }), "points to sector"},
		"ends first":      {gpt(func(b []byte) { le.PutUint64(b[1024+40:], 5) }), "partition 1 has sectors"},
		"beyond the end":  {gpt(func(b []byte) { le.PutUint64(b[1024+40:], 1<<63) }), "truncated?"},
		"whole range":     {gpt(func(b []byte) { le.PutUint64(b[1024+32:], 0); le.PutUint64(b[1024+40:], 1<<64-1) }), "partition 1 has sectors"},
		"overlap":         {gpt(func(b []byte) { le.PutUint64(b[1024+40:], 17*mib/512) }), "partitions 1 and 2 overlap"},
		"truncated":       {plain(gptDisk[:4*mib]), "truncated?"},
		"truncated mbr":   {plain(logicalDisk[:4*mib]), "truncated?"},
		"ring":            {logical(func(b []byte) { le.PutUint32(b[ebr+link+8:], 0) }), "ring"},
		"link far":        {logical(func(b []byte) { le.PutUint32(b[ebr+link+8:], 1<<32-1) }), "points to sector"},
	} {
		t.Run(name, func(t *testing.T) {
			content := c.content()
			parts, err := block.ReadTable(bytes.NewReader(content), int64(len(content)), 512)
			if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("partitions %+v, error %v; want one with %q", parts, err, c.want)
			}
		})
	}
}

func FuzzReadTable(f *testing.F) {
	f.Add(make([]byte, 512), false)
	for _, script := range []string{gptScript, logicalScript} {
		if _, err := exec.LookPath("sfdisk"); err == nil {
			f.Add(disk(f, script)[:34*512], false)
		}
	}
	f.Fuzz(func(t *testing.T, head []byte, big bool) {
		sector := 512
		if big {
			sector = 4096
		}
		const size = 64 * mib
		parts, err := block.ReadTable(padded(head), size, sector)
		if err != nil {
			return
		}
		for _, p := range parts {
			if p.Index < 1 || p.Start < 0 || p.Size <= 0 || p.Start+p.Size > size {
				t.Errorf("partition %+v is not on a disk of %d bytes", p, size)
			}
		}
	})
}

// padded reads as zeros behind its end.
type padded []byte

func (b padded) ReadAt(p []byte, at int64) (int, error) {
	clear(p)
	if at < int64(len(b)) {
		copy(p, b[at:])
	}
	return len(p), nil
}
