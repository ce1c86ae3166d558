package testkit

import "testing"

// Inits are those that Debian packages besides systemd. It has no package of dinit.
func Inits() []string { return []string{"sysvinit", "openrc", "runit", "s6", "finit"} }

// Init returns a SquashFS image of a small Debian that another init than systemd boots. Like Debian it builds the image once.
func Init(t testing.TB, init string) string {
	t.Helper()
	NotInGuest(t, "mmdebstrap")
	Need(t, "squashfs", "mksquashfs")
	return built(t, "inits.sh", init)
}
