package container

import (
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// The real-time signals, as glibc numbers them: it keeps the first two of the kernel for itself.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// MaxStopTimeout is the longest that a definition can ask for.
const MaxStopTimeout = 45 * time.Second

func checkStop(signal string, timeout int64, faults *errs.Faults) {
	switch number, ok := signalNumber(signal); {
	case signal == "":
	case !ok:
		faults.Add("stop_signal", "%q is not a signal: give a name such as SIGTERM or SIGRTMIN+3, or a number from 1 to %d", signal, sigRTMax)
	case number == int(unix.SIGSTOP):
		faults.Add("stop_signal", "%s pauses and does not end anything: ask for the state paused instead", signal)
	}
	if most := int64(MaxStopTimeout / time.Second); timeout < 0 || timeout > most {
		faults.Add("stop_timeout", "%d is not between 1 and %d seconds", timeout, most)
	}
}

// signalNumber returns the number of a signal that is given by name, with SIG or without, or as a number.
func signalNumber(name string) (int, bool) {
	if n, err := strconv.ParseUint(name, 10, 8); err == nil && n >= 1 && n <= sigRTMax {
		return int(n), true
	}
	name = "SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if n := unix.SignalNum(name); n != 0 {
		return int(n), true
	}
	if above, ok := strings.CutPrefix(name, "SIGRTMIN"); ok {
		return realTime(sigRTMin, above, "+")
	}
	if below, ok := strings.CutPrefix(name, "SIGRTMAX"); ok {
		return realTime(sigRTMax, below, "-")
	}
	return 0, false
}

// realTime returns the signal at a distance, "+3" or nothing, from an end of the real-time ones.
func realTime(from int, distance, sign string) (int, bool) {
	if distance == "" {
		return from, true
	}
	digits, ok := strings.CutPrefix(distance, sign)
	n, err := strconv.ParseUint(digits, 10, 8)
	if !ok || err != nil || n > sigRTMax-sigRTMin {
		return 0, false
	}
	if sign == "-" {
		return from - int(n), true
	}
	return from + int(n), true
}
