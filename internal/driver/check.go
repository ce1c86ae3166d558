package driver

import "context"

// Checker is a Unit that can tell how its Up would go.
type Checker interface {
	Unit
	// Check makes sure of what Up makes sure of before it acts, by the same code, and fails as Up would. It changes nothing, loads no
	// kernel module and honours ctx's deadline. A need of the site that is still to be made is a preview, too; then the site's ID is 0.
	// With an error the Preview tells at least what Up does.
	Check(ctx context.Context, place Placement) (Preview, error)
}

// StartChecker is a ContainerUnit that can tell how its Start would go. CheckStart is for Start what Check is for Up.
type StartChecker interface {
	ContainerUnit
	CheckStart(ctx context.Context, place Placement) (Preview, error)
}

// Preview is what can be told of an act before it happens.
type Preview struct {
	Does   string // what the act does, in words: "attach the file /images/a.squashfs to a loop device"
	Status Status // what can be known of it: a Device or Tree that is still to be made has no Path
	// Unknown is what only the act finds out, in clauses such as "whether the server has that export".
	Unknown []string
}

// Made tells whether the device is there, and not a preview.
func (d *Device) Made() bool { return d != nil && d.Path != "" }

// Made tells whether the tree is there, and not a preview.
func (t *Tree) Made() bool { return t != nil && t.Path != "" }
