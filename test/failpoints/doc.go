// Package failpoints makes each privileged act of a whole stack fail in turn, with the real drivers on the real
// kernel, and checks each time that nothing is left or that what is left is told and goes with a retry.
package failpoints
