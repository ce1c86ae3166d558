// Package e2e tests the built server from the outside, over its socket and over http, and compares the kernel's
// state before and after.
package e2e
