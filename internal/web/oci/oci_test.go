package oci

import (
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

var digest = "sha256:" + strings.Repeat("0a", 32)

func TestReferences(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"h:5000/a/b:1":               "h:5000 a/b 1 ",
		"docker.io/library/a:latest": "registry-1.docker.io library/a latest ",
		"h/a@" + digest:              "h a  " + digest,
		"h/a:1@" + digest:            "h a  " + digest,
	} {
		r, err := ParseReference(text)
		if got := strings.Join([]string{r.Host, r.Repository, r.Tag, r.Digest}, " "); err != nil || got != want {
			t.Errorf("%s is %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "a", "a:1", "h/a", "h/A:1", "h/a@sha256:0", "http://h/a:1", "h/a@sha512:" + strings.Repeat("0", 128), "h/../a:1", "u:p@h/a:1"} {
		if r, err := ParseReference(text); err == nil {
			t.Errorf("%q is %+v", text, r)
		}
	}
}

func TestParts(t *testing.T) {
	t.Parallel()
	layer := func(kind, title string) v1.Descriptor {
		return v1.Descriptor{MediaType: kind, Annotations: map[string]string{v1.AnnotationTitle: title}}
	}
	tar := layer("application/vnd.oci.image.layer.v1.tar+gzip", "")
	docker := layer("application/vnd.docker.image.rootfs.diff.tar.gzip", "")
	secret := layer("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "")
	root, text := layer("application/x-squashfs", "root"), layer("text/plain", "readme")
	for name, c := range map[string]struct {
		layers   []v1.Descriptor
		artifact string
		blob     string // the media type; empty: none, "!": an error
	}{
		"files":               {[]v1.Descriptor{tar, docker}, "", ""},
		"an image":            {[]v1.Descriptor{root}, "", root.MediaType},
		"two parts":           {[]v1.Descriptor{root, text}, "", "!"},
		"a title":             {[]v1.Descriptor{root, text}, "root", root.MediaType},
		"a type":              {[]v1.Descriptor{root, text}, "text/plain", text.MediaType},
		"a type of two":       {[]v1.Descriptor{tar, tar}, tar.MediaType, "!"},
		"a layer as an image": {[]v1.Descriptor{tar}, tar.MediaType, tar.MediaType},
		"files and an image":  {[]v1.Descriptor{tar, root}, "", "!"},
		"an encrypted layer":  {[]v1.Descriptor{tar, secret}, "", "!"},
		"nothing":             {nil, "", "!"},
	} {
		blob, err := Document{Layers: c.layers}.Blob(c.artifact)
		switch {
		case c.blob == "!" && err == nil, c.blob != "!" && err != nil, blob == nil && c.blob != "" && c.blob != "!", blob != nil && blob.MediaType != c.blob:
			t.Errorf("%s: %+v, %v", name, blob, err)
		}
	}
}

func TestPlatforms(t *testing.T) {
	t.Parallel()
	index := Document{Manifests: []v1.Descriptor{
		{Digest: "none"}, {Digest: "amd", Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}},
		{Digest: "v7", Platform: &v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}}, {Digest: "v6", Platform: &v1.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}},
	}}
	for text, want := range map[string]string{"linux/amd64": "amd", "linux/arm": "v7", "linux/arm/v6": "v6", "linux/arm/v5": "", "windows/amd64": ""} {
		p, err := ParsePlatform(text)
		if err != nil {
			t.Fatal(err)
		}
		if found, err := index.Select(p); string(found.Digest) != want || (err == nil) != (want != "") {
			t.Errorf("%s is %q, %v", text, found.Digest, err)
		}
	}
	for _, text := range []string{"linux", "linux/", "/amd64", "a/b/c/d"} {
		if p, err := ParsePlatform(text); err == nil {
			t.Errorf("%q is %+v", text, p)
		}
	}
}

// FuzzAnswers: nothing that a registry sends makes a parser panic, and what they accept names parts by digests alone.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"` + digest + `"},"layers":[{"mediaType":"a","digest":"` + digest + `","size":7}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"` + digest + `","platform":{"os":"linux","architecture":"amd64"}}]}`))
	f.Add([]byte(`{"os":"linux","architecture":"amd64","config":{"Env":["A=b"]},"rootfs":{"diff_ids":["` + digest + `"]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := Platform{OS: "linux", Architecture: "amd64"}
		_, _ = ParseConfig(data, p, 1)
		d, err := ParseDocument(data)
		if err != nil {
			return
		}
		if m, err := d.Select(p); err == nil && !digestForm.MatchString(m.Digest.String()) {
			t.Errorf("selected %q", m.Digest)
		}
		if blob, err := d.Blob(""); err == nil && blob != nil {
			if root, offset, err := Verity(*blob); err == nil && root != "" && (offset <= 0 || offset >= blob.Size) {
				t.Errorf("a hash tree at %d of %d", offset, blob.Size)
			}
		}
	})
}
