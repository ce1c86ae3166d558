package keep

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/web/layers"
)

// Merging is the configuration of a process that merges layers. After the descriptor that it writes the file system to it has one for each.
type Merging struct {
	DiffIDs []string `json:"diff_ids"`
	UUID    [16]byte `json:"uuid"`
	User    int      `json:"user"` // that the process becomes
}

// Merger is the first argument of a process that merges layers.
const Merger = "merge"

// mostMemory is the memory of a process that merges layers.
const mostMemory = 1 << 30

// Merge is the program that merges layers. It ends with the daemon that has started it.
func Merge() error {
	run, err := wire.Receive(wire.ControlFD)
	if err != nil {
		return err
	}
	done, gone := make(chan error, 1), make(chan struct{})
	go func() { done <- merge(run) }()
	go func() {
		_, _ = wire.Receive(wire.ControlFD) // nothing comes any more
		close(gone)
	}()
	select {
	case err = <-done:
	case <-gone:
		return errors.New("the daemon has ended")
	}
	result := wire.Message{Kind: wire.Ready}
	if err != nil {
		result = wire.Message{Kind: wire.Failed, Fields: []string{err.Error()}}
	}
	return errors.Join(err, wire.Send(wire.ControlFD, result))
}

func merge(run wire.Message) error {
	var m Merging
	if err := Decode(run, &m); err != nil {
		return errors.New("malformed configuration")
	}
	for _, fd := range []int{wire.ProgramFD, wire.SocketFD, wire.RecordFD} {
		unix.Close(fd)
	}
	// The kernel ends this process before any other that matters.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("900"), 0); err != nil {
		return err
	}
	if err := settle(m.User, Surroundings{}); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: mostMemory, Max: mostMemory}); err != nil {
		return err
	}
	if err := drop(m.User); err != nil {
		return err
	}
	out := os.NewFile(wire.FirstFD, "image")
	var all []layers.Layer
	for number, id := range m.DiffIDs {
		all = append(all, layers.Layer{File: os.NewFile(uintptr(wire.FirstFD+1+number), "layer"), DiffID: id})
	}
	return errors.Join(layers.Merge(out, all, m.UUID), out.Close())
}
