// Package cli tests the built command-line client against the built server, as a user runs it.
package cli
