package supervisor

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHeed: only the process in question can say that it is ready, once, and the end comes when the socket is shut down.
func TestHeed(t *testing.T) {
	for name, c := range map[string]struct {
		pid      int
		messages []string
		want     int
	}{
		"ready":        {os.Getpid(), []string{"STATUS=starting", "READY=1\nSTATUS=running"}, 1},
		"twice":        {os.Getpid(), []string{"READY=1", "READY=1"}, 1},
		"not ready":    {os.Getpid(), []string{"READY=0", "NOTREADY=1", "READY=11", ""}, 0},
		"someone else": {os.Getpid() + 1, []string{"READY=1"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pair[0])
			defer unix.Close(pair[1])
			if err := unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
				t.Fatal(err)
			}
			for _, message := range c.messages {
				if err := unix.Sendto(pair[1], []byte(message), 0, nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.Shutdown(pair[0], unix.SHUT_RDWR); err != nil { // what was sent before is read nevertheless
				t.Fatal(err)
			}
			got := 0
			heed(pair[0], c.pid, func() { got++ })
			if got != c.want {
				t.Errorf("ready %d times, want %d", got, c.want)
			}
		})
	}
}

func TestPlain(t *testing.T) {
	for said, want := range map[string]string{
		"one\r\ntwo\r\r\n": "one\ntwo\n",
		"\n\rthree":        "\nthree",
		"":                 "",
	} {
		if got := string(plain([]byte(said))); got != want {
			t.Errorf("%q: %q, want %q", said, got, want)
		}
	}
}
