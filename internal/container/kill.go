package container

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/sys/descendants"
)

// rouse lets a supervisor that was stopped go on, and kills what descends from it: what has left the cgroup.
func (p *process) rouse() {
	err := p.driver.eachSupervisor(p.id, func(pid, pidfd int) error {
		return p.driver.opt.Failpoint.Do("supervisor wake", func() error {
			still := func() bool { return unix.PidfdSendSignal(pidfd, 0, nil, 0) == nil }
			return errors.Join(unix.PidfdSendSignal(pidfd, unix.SIGCONT, nil, 0), descendants.Kill(pid, still))
		})
	})
	if err != nil {
		p.log.Warn("kill of processes outside the cgroup failed", logkey.Container, p.id, logkey.Error, err)
	}
}

// killSupervisor ends a supervisor that does not report the end of its container. Its end is seen by watch.
func (p *process) killSupervisor() {
	if !p.isEmpty() {
		return // it has something to wait for
	}
	err := p.driver.eachSupervisor(p.id, func(pid, pidfd int) error {
		if descendants.Any(pid) {
			return nil
		}
		p.log.Warn("supervisor silent after container end, killed", logkey.Container, p.id, logkey.PID, pid)
		return p.driver.opt.Failpoint.Do("supervisor kill", func() error { return unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) })
	})
	if err != nil {
		p.log.Error("supervisor kill failed", logkey.Container, p.id, logkey.Error, err)
	}
}

// holdFirst opens the first process while its supervisor lives: afterwards nothing would tell it from another one, if it has left the cgroup.
func (p *process) holdFirst() {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return // it has ended
	}
	first := os.NewFile(uintptr(fd), "pidfd")
	if !p.holds(p.pid) && !p.supervised(p.pid) {
		first.Close()
		return
	}
	p.first = first
}

// killFirst kills the first process, and with it its pid namespace.
func (p *process) killFirst() error {
	if p.first == nil {
		return nil
	}
	err := p.driver.opt.Failpoint.Do("first process kill", func() error { return unix.PidfdSendSignal(int(p.first.Fd()), unix.SIGKILL, nil, 0) })
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// isEmpty tells whether nothing is in the cgroup.
func (p *process) isEmpty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return true
	}
	populated, ok := p.group.Entry("cgroup.events", "populated")
	return ok && populated == 0
}

// eachSupervisor calls do with each supervisor of a container, of which there is one at most.
func (d *Driver) eachSupervisor(id int64, do func(pid, pidfd int) error) error {
	pids, err := d.supervisors.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has just ended
		}
		if d.registry.Owns(pid, groupName(id)) {
			err = do(pid, pidfd)
		}
		unix.Close(pidfd)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}
