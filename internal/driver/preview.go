package driver

// Preview describes an act before it happens.
type Preview struct {
	Does   string // the act, in words: "attach the file /images/a.squashfs to a loop device"
	Status Status // as far as it is known: a Device or Tree that does not exist yet has no Path
	// Unknown are the facts that only the act finds out, in clauses such as "whether the server has that export".
	Unknown []string
}

// Made reports whether the device exists, and is not a preview.
func (d *Device) Made() bool { return d != nil && d.Path != "" }

// Made reports whether the tree exists, and is not a preview.
func (t *Tree) Made() bool { return t != nil && t.Path != "" }
