// Package failpoint marks the border to the kernel: every act that changes the node passes a Hook.
//
// In the product the hook is nil and costs a comparison. Tests put a function there that records the acts, makes
// one of them fail, or ends the process before or after one, with the real kernel underneath: what they prove is true of
// the kernel and not of a picture of it.
package failpoint

// Hook performs the privileged acts. It returns what perform returns, or does not call it and returns an error: then the act
// does not happen and fails with that. The act's name is a short verb and noun, such as "loop configure"; it is stable, tests
// list them.
type Hook func(act string, perform func() error) error

// Do performs act, unless the failpoint forbids it.
func (g Hook) Do(act string, perform func() error) error {
	if g == nil {
		return perform()
	}
	return g(act, perform)
}

// Ask makes a Hook of a function that is asked before each act and forbids it by an error.
func Ask(before func(act string) error) Hook {
	return func(act string, perform func() error) error {
		if err := before(act); err != nil {
			return err
		}
		return perform()
	}
}
