package api

import (
	"encoding/json"
	"net/url"
	"path"
	"strconv"
	"strings"
)

// mountOfURI turns a mount of kind uri into the objects that the URI stands for. Nothing below this package knows the form.
func (n *normalizer) mountOfURI(at string, m map[string]any) {
	if m["kind"] != "uri" {
		return
	}
	given, ok := m["uri"].(map[string]any)
	if !ok {
		n.faults.Add(at+".uri", "is required for a mount of kind uri")
		return
	}
	text, _ := given["uri"].(string)
	u := uriForm{given: given, fault: func(field, format string, args ...any) { n.faults.Add(at+".uri."+field, format, args...) }}
	kind, object := u.mount(text)
	if object == nil {
		return // a fault was noted
	}
	delete(m, "uri")
	m["kind"], m[kind] = kind, object
}

// uriForm is the sub-object of a mount of kind uri.
type uriForm struct {
	given map[string]any
	fault func(field, format string, args ...any)
}

const uriSchemes = "file:, http:, https:, s3:, oci:, oci+http:, nfs:, iscsi: or rbd:"

// mount returns the kind of the mount that a URI stands for, and its sub-object; nil after a fault.
func (f uriForm) mount(text string) (kind string, object map[string]any) {
	u, err := url.Parse(text)
	switch {
	case err != nil: // its text may hold a secret
		f.fault("uri", "is not a URI")
		return "", nil
	case u.User != nil:
		f.fault("uri", "contains a user: move it to auth")
		return "", nil
	case u.Fragment != "":
		f.fault("uri", "contains a fragment (#): leave it out")
		return "", nil
	}
	switch u.Scheme {
	case "nfs":
		return "nfs", f.nfs(u)
	case "", "file":
		return f.device(f.file(u))
	case "http", "https":
		return f.device(f.web(text))
	case "s3":
		return f.device(f.s3(u))
	case "oci", "oci+http":
		return f.device(f.oci(u))
	case "iscsi":
		return f.device(f.iscsi(u))
	case "rbd":
		return f.device(f.rbd(u))
	}
	f.fault("uri", "has the scheme %.*q: use %s", maxQuoted, u.Scheme, uriSchemes)
	return "", nil
}

// device mounts the file system on an attachment.
func (f uriForm) device(attach map[string]any) (kind string, object map[string]any) {
	if attach == nil {
		return "", nil
	}
	if v := f.given["verity"]; v != nil {
		attach["verity"] = v
	}
	object = map[string]any{"attach": attach, "fs_type": "auto"}
	if v := f.given["fs_type"]; v != nil && v != "" {
		object["fs_type"] = v
	}
	options, _ := f.given["mount_options"].([]any)
	if f.given["ro"] == true {
		options = append(options[:len(options):len(options)], "ro")
	}
	if len(options) > 0 {
		object["mount_options"] = options
	}
	return "attach", object
}

// only notes a fault for each field that a scheme has no use for.
func (f uriForm) only(scheme string, fields ...string) {
	for _, field := range fields {
		if v := f.given[field]; v != nil && v != "" {
			f.fault(field, "has no use with %s: leave it out", scheme)
		}
	}
}

// file is a path on the node, alone or as file:/PATH or file:///PATH.
func (f uriForm) file(u *url.URL) map[string]any {
	f.only("file:", "auth", "ca_file")
	if u.Host != "" && u.Host != "localhost" || u.RawQuery != "" || !strings.HasPrefix(u.Path, "/") {
		f.fault("uri", "is not an absolute path on the node: write file:///PATH")
		return nil
	}
	object := map[string]any{"path": u.Path, "base": "root"}
	if f.given["ro"] == true {
		object["ro"] = true
	}
	return map[string]any{"kind": "loopback", "loopback": object}
}

func (f uriForm) web(address string) map[string]any {
	object := map[string]any{"urls": []any{address}}
	f.copy(object, "auth", "ca_file")
	return map[string]any{"kind": "http", "http": object}
}

func (f uriForm) copy(to map[string]any, fields ...string) {
	for _, field := range fields {
		if v := f.given[field]; v != nil {
			to[field] = v
		}
	}
}

// s3 is s3://BUCKET/KEY at auth.s3.endpoint.
func (f uriForm) s3(u *url.URL) map[string]any {
	if u.Host == "" || len(u.Path) < 2 || u.RawQuery != "" {
		f.fault("uri", "has no bucket or no key: write s3://BUCKET/KEY")
		return nil
	}
	auth, _ := f.given["auth"].(map[string]any)
	keys, _ := auth["s3"].(map[string]any)
	text := func(field, otherwise string) string {
		if v, _ := keys[field].(string); v != "" {
			return v
		}
		return otherwise
	}
	endpoint, err := url.Parse(text("endpoint", "https://s3."+text("region", "us-east-1")+".amazonaws.com"))
	if err != nil || endpoint.Host == "" || endpoint.Scheme != "http" && endpoint.Scheme != "https" {
		f.fault("auth.s3.endpoint", "must begin with http:// or https:// and a host")
		return nil
	}
	if keys["path_style"] == true {
		endpoint.Path = path.Join("/", endpoint.Path, u.Host) + u.Path
	} else {
		endpoint.Host, endpoint.Path = u.Host+"."+endpoint.Host, u.Path
	}
	return f.web(endpoint.String())
}

func (f uriForm) oci(u *url.URL) map[string]any {
	object := map[string]any{"image": u.Host + u.Path}
	if u.Scheme == "oci+http" {
		object["plain_http"] = true
	}
	f.copy(object, "auth", "ca_file")
	return map[string]any{"kind": "oci", "oci": object}
}

// nfs is nfs://HOST[:PORT]/PATH (RFC 2224, section 2).
func (f uriForm) nfs(u *url.URL) map[string]any {
	f.only("nfs:", "fs_type", "auth", "ca_file", "verity")
	if u.Hostname() == "" || u.Path == "" || u.RawQuery != "" {
		f.fault("uri", "has no host or no path: write nfs://HOST/PATH")
		return nil
	}
	object := map[string]any{"host": u.Hostname(), "path": u.Path, "ro": f.given["ro"] == true}
	options, _ := f.given["mount_options"].([]any)
	if u.Port() != "" {
		options = append(options[:len(options):len(options)], "port="+u.Port())
	}
	if len(options) > 0 {
		object["options"] = options
	}
	return object
}

// iscsi is iscsi://HOST[:PORT]/TARGET/LUN?initiator=IQN; the names have no slash (RFC 3720, section 3.2.6).
func (f uriForm) iscsi(u *url.URL) map[string]any {
	f.only("iscsi:", "ca_file")
	target, lun, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	number, err := strconv.ParseUint(lun, 10, 16)
	initiator := u.Query().Get("initiator")
	if u.Hostname() == "" || target == "" || err != nil || initiator == "" {
		f.fault("uri", "is not complete: write iscsi://HOST[:PORT]/TARGET/LUN?initiator=IQN")
		return nil
	}
	object := map[string]any{"initiator": initiator, "target": target, "host": u.Hostname(), "lun": json.Number(strconv.FormatUint(number, 10))}
	if _, err := strconv.ParseUint(u.Port(), 10, 16); err == nil {
		object["port"] = json.Number(u.Port())
	}
	if f.given["ro"] == true {
		object["ro"] = true
	}
	if auth, ok := f.given["auth"].(map[string]any); ok {
		chap := map[string]any{}
		rename(chap, auth, map[string]string{"user": "username", "password": "secret", "password_file": "secret_file"})
		object["auth"] = chap
	}
	return map[string]any{"kind": "iscsi", "iscsi": object}
}

// rbd is rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]?mon=HOST[,HOST…].
func (f uriForm) rbd(u *url.URL) map[string]any {
	f.only("rbd:", "ca_file")
	name, snapshot, _ := strings.Cut(u.Opaque, "@")
	parts := strings.Split(name, "/")
	var monitors []any
	for mon := range strings.SplitSeq(u.Query().Get("mon"), ",") {
		if mon != "" {
			monitors = append(monitors, mon)
		}
	}
	auth, _ := f.given["auth"].(map[string]any)
	if len(parts) < 2 || len(parts) > 3 || len(monitors) == 0 || auth == nil {
		f.fault("uri", "is not complete: write rbd:POOL/IMAGE?mon=HOST, and the user and key in auth")
		return nil
	}
	options := map[string]any{}
	rename(options, auth, map[string]string{"user": "name", "password": "secret", "password_file": "secret_file"})
	if f.given["ro"] == true {
		options["ro"] = true
	}
	object := map[string]any{"monitors": monitors, "pool": parts[0], "image": parts[len(parts)-1], "options": options}
	if len(parts) == 3 {
		options["namespace"] = parts[1]
	}
	if snapshot != "" {
		object["snapshot"] = snapshot
	}
	return map[string]any{"kind": "rbd", "rbd": object}
}

// rename copies fields under other names.
func rename(to, from map[string]any, names map[string]string) {
	for name, other := range names {
		if v := from[name]; v != nil {
			to[other] = v
		}
	}
}
