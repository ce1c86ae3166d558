package iscsi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An address says nothing about whose disk is behind it: a target can give a number to another volume at any time, and the kernel does
// not care. So the identity of each unit is compared with that of its attach:
//
//  1. at each login after the first, before I/O is let through;
//  2. when the unit tells that something about it has changed (unit attention);
//  3. now and then.
//
// All I/O of a unit that has changed fails from then on.

// guarded is a unit whose identity is compared.
type guarded struct {
	want  Identity
	wrong error // what was found, if it has changed
}

const (
	// lookEvery is the time between two looks at the units, jittered by half. A unit that is replaced while the connection stands
	// is written to for that long at most.
	lookEvery = 10 * time.Second
	// lookTime is how long a look at one may take.
	lookTime = 10 * time.Second
)

// removed is why a unit is wrong that its target does not have any more.
const removed = "does not exist any more"

// Guard has a unit compared with what it must be from now on.
func (s *Session) Guard(lun int, want Identity) {
	s.mu.Lock()
	if g := s.units[lun]; g != nil { // remembered, and perhaps found to be wrong already
		g.want = want
	} else {
		s.units[lun] = &guarded{want: want}
	}
	s.mu.Unlock()
}

// remember guards the units that nobody has asked to be guarded, such as those that a later server is just about to recover, by what
// the kernel has read when it found them.
func (s *Session) remember() {
	for _, lun := range s.Units() {
		want := s.Unit(lun).Remembered()
		s.mu.Lock()
		if s.units[lun] == nil {
			s.units[lun] = &guarded{want: want}
		}
		s.mu.Unlock()
	}
}

// Release ends that.
func (s *Session) Release(lun int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.units, lun)
}

// Wrong says what a unit is now, if it has changed. It never waits.
func (s *Session) Wrong(lun int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.units[lun]; g != nil {
		return g.wrong
	}
	return nil
}

// Verify has the units looked at now, in the background.
func (s *Session) Verify() {
	select {
	case s.look <- struct{}{}:
	default:
	}
}

// right returns the numbers of the guarded units that are unchanged.
func (s *Session) right() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Sorted(maps.Keys(s.units)), func(lun int) bool { return s.units[lun].wrong != nil })
}

// verify asks the target over a connection of its own who the guarded units are, while I/O waits. Afterwards, the I/O of units that have
// changed has failed. A unit that the target does not have may yet come, until I/O fails anyway.
func (s *Session) verify(ctx context.Context, tcp net.Conn) error {
	found, absent, err := s.conf.probe(ctx, tcp, s.right())
	if err != nil {
		return err
	}
	for lun := range absent {
		if s.State() != Failed {
			return fail(Remote, "LUN %d: %w", lun, ErrAbsent)
		}
		err = errors.Join(err, s.stopIO(ctx, lun, removed))
	}
	for lun, now := range found {
		err = errors.Join(err, s.judge(ctx, lun, now))
	}
	return err
}

// judge compares a unit with what it must be. With an error its I/O could not be stopped.
func (s *Session) judge(ctx context.Context, lun int, now Identity) error {
	s.mu.Lock()
	g := s.units[lun]
	if g == nil || g.wrong != nil {
		s.mu.Unlock()
		return nil
	}
	why := g.want.changed(now)
	if why == "" {
		g.want.Size = now.Size
	}
	s.mu.Unlock()
	if why == "" {
		return nil
	}
	return s.stopIO(ctx, lun, why)
}

// stopIO ends the I/O of a unit.
func (s *Session) stopIO(ctx context.Context, lun int, why string) error {
	u := s.Unit(lun)
	wrong := fail(Conflict, "LUN %d of target %s %s; its I/O fails since that was noticed", lun, s.conf.Target, why)
	if !u.running() {
		s.setWrong(lun, wrong) // or the attachment is found without its device and without this reason
	}
	err := u.fail(ctx)
	s.env.Log.Error("logical unit changed", keyTarget, s.conf.Target, keyLUN, lun, keyReason, why, keyError, err)
	if err != nil {
		s.setWrong(lun, nil) // it is looked at again
		return fmt.Errorf("stop the I/O of LUN %d, which %s: %w", lun, why, err)
	}
	s.setWrong(lun, wrong)
	return nil
}

func (s *Session) setWrong(lun int, wrong error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.units[lun]; g != nil {
		g.wrong = wrong
	}
	if s.env.Changed != nil {
		s.env.Changed()
	}
}

// Unit returns a logical unit of the session.
func (s *Session) Unit(lun int) Unit { return Unit{Session: s, LUN: lun} }

// guard looks at the units until ctx ends.
func (s *Session) guard(ctx context.Context) {
	s.work.Go(func() { s.attentions(ctx) })
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.look:
		case <-time.After(jitter(lookEvery)):
		}
		for _, lun := range s.right() {
			if s.State() == LoggedIn && ctx.Err() == nil {
				s.inspect(ctx, lun)
			}
		}
	}
}

// inspect looks at one unit by way of the kernel. What can't be found out now is found out the next time, or before the next login.
func (s *Session) inspect(ctx context.Context, lun int) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	u := s.Unit(lun)
	now, err := u.Identify(ctx)
	switch {
	case errors.Is(err, ErrAbsent):
		err = s.stopIO(ctx, lun, removed)
	case err == nil:
		if err = s.judge(ctx, lun, now); err == nil && s.Wrong(lun) == nil {
			err = u.resize(ctx, now.Size)
		}
	}
	if err != nil && ctx.Err() == nil {
		s.env.Log.Debug("logical unit not checked", keyTarget, s.conf.Target, keyLUN, lun, keyError, err)
	}
}

// attentions has the units looked at when one reports that something has changed: a uevent with SDEV_UA.
func (s *Session) attentions(ctx context.Context) {
	news, err := listenDevices()
	if err != nil {
		s.env.Log.Warn("logical unit events unavailable, changes found late", keyError, err)
		return
	}
	defer news.Close()
	defer expire(ctx, news)()
	buffer, host := make([]byte, 16<<10), fmt.Sprintf("/host%d/", s.conn.host)
	for ctx.Err() == nil {
		n, from, err := receive(news, buffer)
		text := string(buffer[:n])
		switch {
		case errors.Is(err, unix.ENOBUFS): // what was lost may be ours
		case err != nil:
			return
		case !fromKernel(from) || !strings.Contains(text, "\x00SDEV_UA=") || !strings.Contains(text, host):
			continue
		}
		s.Verify()
	}
}

// Asker asks a SCSI device, in a process that can be killed.
type Asker interface {
	// Ask sends commands to the device at path and returns the answers one after the other, as Answer tells.
	Ask(ctx context.Context, path string, commands [][]byte, lengths []int) ([]byte, error)
}

// Identify asks the unit's device who it is.
func (u Unit) Identify(ctx context.Context) (id Identity, err error) {
	for range theTries {
		var answers []Answer
		if answers, err = u.ask(ctx); err != nil {
			return id, err
		}
		id, err = parseIdentity(answers)
		if !slices.ContainsFunc(answers, Answer.passing) {
			break
		}
	}
	return id, err
}

func (u Unit) ask(ctx context.Context) (answers []Answer, err error) {
	var commands [][]byte
	var lengths []int
	for _, q := range questions() {
		commands, lengths = append(commands, q.Command), append(lengths, q.Length)
	}
	data, err := u.Session.env.Helper.Ask(ctx, u.path(), commands, lengths)
	if err != nil {
		return nil, err
	}
	for _, length := range lengths {
		if len(data) < AnswerHead+length {
			return nil, errors.New("the answers are cut off")
		}
		answers = append(answers, Answer{data[0], data[1], data[2], data[3], data[AnswerHead:][:length]})
		data = data[AnswerHead+length:]
	}
	return answers, nil
}

// Remembered is what the kernel has read when it found the unit.
func (u Unit) Remembered() Identity {
	read := func(name string) []byte {
		data, _ := os.ReadFile(filepath.Join(u.dir(), name))
		return data
	}
	disk := filepath.Join(u.dir(), "block", u.Disk())
	sectors, _ := strconv.ParseInt(attribute(disk, "size"), 10, 64)
	block, _ := strconv.ParseInt(attribute(disk, "queue/logical_block_size"), 10, 64)
	return Identity{Names: parseNames(read("vpd_pg83")), Serial: serialOf(read("vpd_pg80")), Size: sectors * sector, Block: block}
}

// Rival returns the name of a disk of this node that is the same unit by another way, can be written to, and was there before. A unit
// without a name that is unique in the world has none.
func (u Unit) Rival(id Identity) (disk string) {
	id.Names = slices.DeleteFunc(slices.Clone(id.Names), func(n string) bool {
		return strings.HasPrefix(n, "t10.") || strings.HasPrefix(n, "name.")
	})
	sequence := func(disk string) int {
		n, _ := strconv.Atoi(attribute(disk, "diskseq")) // 0 on a kernel that has none: then each is the other's rival
		return n
	}
	own := u.Disk()
	disks, _ := filepath.Glob("/sys/class/scsi_device/*/device/block/*")
	for _, other := range disks {
		data, err := os.ReadFile(filepath.Join(other, "../../vpd_pg83"))
		earlier := sequence(other) <= sequence(filepath.Join("/sys/block", own))
		if err != nil || filepath.Base(other) == own || attribute(other, "ro") == "1" || !earlier {
			continue
		}
		if slices.ContainsFunc(parseNames(data), func(n string) bool { return slices.Contains(id.Names, n) }) {
			return filepath.Base(other)
		}
	}
	return ""
}

// sector is the unit of sizes in sysfs.
const sector = 512

// offline is the state of a device whose I/O fails.
const offline = "offline"

// Failed reports whether all I/O of the device fails for good.
func (u Unit) Failed() bool { return attribute(u.dir(), "state") == offline }

// running reports whether the device can do I/O.
func (u Unit) running() bool { return attribute(u.dir(), "state") == "running" }

// fail makes all I/O of the device fail. While the connection is lost the kernel refuses to set a device offline: then the device is
// removed, with which the I/O that waits fails at once. With the connection that would write to the unit once more.
func (u Unit) fail(ctx context.Context) error {
	file, word := u.Delete(), "1"
	if u.running() {
		file, word = filepath.Join(u.dir(), "state"), offline+"\n" // the kernel insists on the line's end
	}
	err := u.Session.env.Helper.WriteFile(ctx, file, []byte(word))
	if err != nil && (!u.Exists() || u.Failed()) {
		return nil
	}
	return err
}

// resize has the kernel notice that the unit has grown.
func (u Unit) resize(ctx context.Context, size int64) error {
	known, err := strconv.ParseInt(attribute(filepath.Join(u.dir(), "block", u.Disk()), "size"), 10, 64)
	if err != nil || known*sector == size {
		return nil
	}
	u.Session.env.Log.Info("logical unit resized", keyTarget, u.Session.conf.Target, keyLUN, u.LUN, keySize, size)
	return u.Session.env.Helper.WriteFile(ctx, filepath.Join(u.dir(), "rescan"), []byte("1"))
}
