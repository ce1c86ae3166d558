package api

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestURIForms(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		`{"uri":"/images/a.img"}`: `{"kind":"attach","attach":{"fs_type":"auto","attach":{"kind":"loopback","loopback":{"path":"/images/a.img","base":"root"}}}}`,
		`{"uri":"file:///a%20b","ro":true,"fs_type":"xfs","mount_options":["noatime"]}`: `{"kind":"attach","attach":{"fs_type":"xfs","mount_options":["noatime","ro"],
			"attach":{"kind":"loopback","loopback":{"path":"/a b","base":"root","ro":true}}}}`,
		`{"uri":"https://h:1/a?X-Sig=b","auth":{"bearer":"c"},"ca_file":"/d","verity":{"root_hash":"e"}}`: `{"kind":"attach","attach":{"fs_type":"auto",
			"attach":{"kind":"http","http":{"urls":["https://h:1/a?X-Sig=b"],"auth":{"bearer":"c"},"ca_file":"/d"},"verity":{"root_hash":"e"}}}}`,
		`{"uri":"s3://bucket/a/b"}`: `{"kind":"attach","attach":{"fs_type":"auto","attach":{"kind":"http","http":{"urls":["https://bucket.s3.us-east-1.amazonaws.com/a/b"]}}}}`,
		`{"uri":"s3://bucket/a/b","auth":{"s3":{"endpoint":"http://h:9000","path_style":true}}}`: `{"kind":"attach","attach":{"fs_type":"auto",
			"attach":{"kind":"http","http":{"urls":["http://h:9000/bucket/a/b"],"auth":{"s3":{"endpoint":"http://h:9000","path_style":true}}}}}}`,
		`{"uri":"oci+http://127.0.0.1:5000/a:1"}`:                              `{"kind":"attach","attach":{"fs_type":"auto","attach":{"kind":"oci","oci":{"image":"127.0.0.1:5000/a:1","plain_http":true}}}}`,
		`{"uri":"oci://registry.example:5000/a/b:1"}`:                          `{"kind":"attach","attach":{"fs_type":"auto","attach":{"kind":"oci","oci":{"image":"registry.example:5000/a/b:1"}}}}`,
		`{"uri":"nfs://[2001:db8::1]:2050/export/a","mount_options":["soft"]}`: `{"kind":"nfs","nfs":{"host":"2001:db8::1","path":"/export/a","ro":false,"options":["soft","port=2050"]}}`,
		`{"uri":"iscsi://h:3261/iqn.2026-05.org.example:images/2?initiator=iqn.a","ro":true,"auth":{"user":"u","password":"p"}}`: `{"kind":"attach","attach":{"fs_type":"auto","mount_options":["ro"],
			"attach":{"kind":"iscsi","iscsi":{"host":"h","port":3261,"target":"iqn.2026-05.org.example:images","lun":2,"initiator":"iqn.a","ro":true,"auth":{"username":"u","secret":"p"}}}}}`,
		`{"uri":"rbd:pool/ns/image@snap?mon=a,[::1]:6789","auth":{"user":"u","password_file":"/k"}}`: `{"kind":"attach","attach":{"fs_type":"auto",
			"attach":{"kind":"rbd","rbd":{"monitors":["a","[::1]:6789"],"pool":"pool","image":"image","snapshot":"snap","options":{"name":"u","secret_file":"/k","namespace":"ns"}}}}}`,
	} {
		n, got := translated(t, given)
		if len(n.faults) > 0 {
			t.Errorf("%s: %v", given, n.faults)
			continue
		}
		var expected any
		if err := json.Unmarshal([]byte(want), &expected); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(expected, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", given, diff)
		}
	}
}

func TestURIFaults(t *testing.T) {
	t.Parallel()
	for given, field := range map[string]string{
		`{"uri":"ftp://h/a"}`:                               "uri",
		`{"uri":"relative"}`:                                "uri",
		`{"uri":"file://otherhost/a"}`:                      "uri",
		`{"uri":"http://u:canary@h/a"}`:                     "uri",
		`{"uri":"http://h/a#b"}`:                            "uri",
		`{"uri":"%zz"}`:                                     "uri",
		`{"uri":"s3://bucket"}`:                             "uri",
		`{"uri":"s3://b/k","auth":{"s3":{"endpoint":"h"}}}`: "auth.s3.endpoint",
		`{"uri":"nfs://h"}`:                                 "uri",
		`{"uri":"nfs://h/a","fs_type":"ext4"}`:              "fs_type",
		`{"uri":"/a","auth":{"user":"u"}}`:                  "auth",
		`{"uri":"iscsi://h/iqn.a/0"}`:                       "uri",
		`{"uri":"iscsi://h/iqn.a/x?initiator=iqn.b"}`:       "uri",
		`{"uri":"rbd:pool/image"}`:                          "uri",
		`{"uri":"rbd:image?mon=a","auth":{"user":"u"}}`:     "uri",
	} {
		n, _ := translated(t, given)
		if len(n.faults) == 0 || n.faults[0].Path != "mount.uri."+field || strings.Contains(n.faults.Err().Error(), "canary") {
			t.Errorf("%s: %v, want a fault of %s", given, n.faults, field)
		}
	}
}

// translated returns the mount that a sub-object of kind uri becomes.
func translated(t *testing.T, given string) (*normalizer, any) {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(`{"kind":"uri","uri":`+given+`}`), &m); err != nil {
		t.Fatal(err)
	}
	n := &normalizer{}
	n.mountOfURI("mount", m)
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var plain any
	if err := json.Unmarshal(data, &plain); err != nil {
		t.Fatal(err)
	}
	return n, plain
}

func FuzzURI(f *testing.F) {
	for _, seed := range []string{"/a", "s3://b/k", "rbd:p/i?mon=a", "iscsi://h/t/0?initiator=i", "nfs://h/p"} {
		f.Add(seed)
	}
	f.Fuzz(func(_ *testing.T, text string) {
		n := &normalizer{}
		n.mountOfURI("mount", map[string]any{"kind": "uri", "uri": map[string]any{"uri": text, "auth": map[string]any{"user": "u"}}})
	})
}
