// Package docs tests the documentation: every command in it is run and must answer what is written there, every
// relative link must lead somewhere, and every example must be a valid definition that some page shows.
package docs
