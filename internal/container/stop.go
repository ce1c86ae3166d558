package container

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// This file is the stop policy. The daemon asks the supervisor to stop the container, so that the stop completes without the daemon:
//
//	at once          the supervisor thaws the container and sends the stop signal to the first process
//	stop timeout     the supervisor kills all processes of the container
//	+ supervisorTime the daemon kills them itself, and wakes a supervisor that was stopped
//	+ reportTime     the daemon kills a supervisor that does not report the end of an empty container
//
// The signal and the timeout are those of the definition, else of systemd, else the server's.

const (
	// MaxStopTimeout is the longest that a definition can ask for.
	MaxStopTimeout = 45 * time.Second

	systemdStopTimeout = 30 * time.Second // less than systemd's own 90 s for one service
	supervisorTime     = time.Second      // how long after the stop timeout a supervisor may take to kill the container
	reportTime         = 5 * time.Second  // how long after that it may take to report the end
)

// LongestStop is how long the stop of any container can take on a server with a stop timeout.
func LongestStop(timeout time.Duration) time.Duration { return max(timeout, MaxStopTimeout) }

// The real-time signals, as glibc numbers them: it keeps the first two of the kernel for itself.
const (
	sigRTMin = 34
	sigRTMax = 64
)

func (u *unit) checkStopSignal(faults *errs.Faults) {
	signal := u.Def.StopSignal
	switch number, ok := signalNumber(signal); {
	case signal == "":
	case !ok:
		faults.Add("stop_signal", "%q is not a signal: give a name such as SIGTERM or SIGRTMIN+3, or a number from 1 to %d", signal, sigRTMax)
	case number == int(unix.SIGSTOP):
		faults.Add("stop_signal", "%s pauses and does not end anything: ask for the state paused instead", signal)
	}
}

func (u *unit) checkStopTimeout(faults *errs.Faults) {
	timeout, most := u.Def.StopTimeout, int64(MaxStopTimeout/time.Second)
	if timeout < 0 || timeout > most {
		faults.Add("stop_timeout", "%d is not between 1 and %d seconds", timeout, most)
	}
}

func (u *unit) runStopSignal(config *wire.Config) {
	number, given := signalNumber(u.Def.StopSignal)
	switch {
	case given:
		config.StopSignal = number
	case *u.Def.Systemd:
		config.StopSignal = wire.SystemdStop
	default:
		config.StopSignal = int(unix.SIGTERM)
	}
}

// stopTimeout returns how long the container has to end when it is asked to stop.
func (u *unit) stopTimeout() time.Duration {
	switch given := u.Def.StopTimeout; {
	case given != 0:
		return time.Duration(given) * time.Second
	case *u.Def.Systemd:
		return systemdStopTimeout
	default:
		return u.driver.opt.StopTimeout
	}
}

// Stop implements driver.Process. The supervisor does it, so that the stop completes without the daemon.
func (p *process) Stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live.Err() != nil {
		return
	}
	p.release(errStopping)
	if err := p.keeper.Send(wire.Message{Kind: wire.Stop}); err != nil {
		p.log.Debug("supervisor gone, nothing to stop", logkey.Container, p.id, logkey.Error, err) // watch does the rest
	}
	p.enforce(p.StopTimeout() + supervisorTime)
}

// StopTimeout implements driver.Process.
func (p *process) StopTimeout() time.Duration { return time.Duration(p.timeout.Load()) }

// setStopTimeout has the supervisor use another stop timeout.
func (p *process) setStopTimeout(d time.Duration) error {
	if d == p.StopTimeout() {
		return nil
	}
	return p.change(func() error {
		if err := p.keeper.Send(wire.StopTimeoutMessage(d)); err != nil {
			return fmt.Errorf("send stop timeout to supervisor: %w", err)
		}
		p.timeout.Store(int64(d))
		return nil
	})
}

// enforce kills the container after a time, unless it has ended by then: its supervisor should have done it, but may be stopped, or hang.
func (p *process) enforce(after time.Duration) {
	timer := time.AfterFunc(after, p.Kill)
	p.driver.watches.Go(func() {
		defer timer.Stop()
		select {
		case <-p.reported:
		case <-p.driver.closing.Done():
		}
	})
}

// Kill implements driver.Process. It does not need the supervisor; that the first process is dead is news to that like any other end.
func (p *process) Kill() {
	if !p.killGroup() {
		return
	}
	p.wake()
	p.last.Do(func() {
		p.driver.watches.Go(func() {
			late := time.NewTimer(reportTime)
			defer late.Stop()
			select {
			case <-late.C:
				p.killSupervisor()
			case <-p.reported:
			case <-p.driver.closing.Done():
			}
		})
	})
}

// killGroup kills all that is in the cgroup. It is false if the container has ended.
func (p *process) killGroup() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.release(errStopping)
	if p.gone {
		return false
	}
	if err := p.group.Kill(); err != nil {
		p.log.Error("container kill failed", logkey.Container, p.id, logkey.Error, err)
	}
	return true
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
