// Package gate marks the border to the kernel: every act that changes the node passes a Gate.
//
// In the product the gate is nil and costs a comparison. Tests put a function there that records the acts, makes
// one of them fail, or ends the process, with the real kernel underneath: what they prove is true of the kernel
// and not of a picture of it.
package gate

// Gate is asked before each privileged act. If it returns an error the act does not happen and fails with it.
// The act's name is a short verb and noun, such as "loop configure"; it is stable, tests list them.
type Gate func(act string) error

// Do performs act unless the gate forbids it.
func (g Gate) Do(act string, perform func() error) error {
	if g != nil {
		if err := g(act); err != nil {
			return err
		}
	}
	return perform()
}
