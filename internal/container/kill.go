package container

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/sys/descendants"
)

// wake lets a supervisor that was stopped continue, and kills its descendants: those that have left the cgroup.
func (p *process) wake() {
	s := p.keeper.Process()
	pid := s.PID()
	if pid == 0 {
		return // it has ended
	}
	err := p.driver.opt.Failpoint.Do("supervisor wake", func() error {
		return errors.Join(s.Signal(unix.SIGCONT), descendants.Kill(pid, func() bool { return !s.Ended() }))
	})
	if err != nil && !s.Ended() {
		p.log.Warn("kill of processes outside the cgroup failed", logkey.Container, p.id, logkey.Error, err)
	}
}

// killSupervisor ends a supervisor that does not report the end of its container. Its end is seen by watch.
func (p *process) killSupervisor() {
	s := p.keeper.Process()
	pid := s.PID()
	if pid == 0 || !p.isEmpty() || descendants.Any(pid) {
		return // it has ended, or has something to wait for
	}
	p.log.Warn("supervisor silent after container end, killed", logkey.Container, p.id, logkey.PID, pid)
	err := p.driver.opt.Failpoint.Do("supervisor kill", func() error { return s.Signal(unix.SIGKILL) })
	if err != nil && !s.Ended() {
		p.log.Error("supervisor kill failed", logkey.Container, p.id, logkey.Error, err)
	}
}

// killFirst kills the first process, and with it its pid namespace.
func (p *process) killFirst() error {
	err := p.driver.opt.Failpoint.Do("first process kill", func() error { return unix.PidfdSendSignal(int(p.first.Fd()), unix.SIGKILL, nil, 0) })
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// isEmpty reports whether nothing is in the cgroup.
func (p *process) isEmpty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return true
	}
	populated, ok := p.group.Entry("cgroup.events", "populated")
	return ok && populated == 0
}
