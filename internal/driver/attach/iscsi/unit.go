package iscsi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/iscsi"
	"github.com/kraken-hpc/imageapi/internal/waits"
	"github.com/kraken-hpc/imageapi/models"
)

// undoTime is how long it may take to take back what is half done.
const undoTime = 10 * time.Second

// unit is one logical unit.
type unit struct {
	driver *Driver

	Initiator        string   `json:"initiator"`
	Target           string   `json:"target"`
	Host             string   `json:"host"`
	Port             int64    `json:"port"`
	Portals          []string `json:"portals,omitempty"` // further ones, as given
	LUN              int64    `json:"lun"`
	ReadOnly         bool     `json:"ro,omitempty"` // as asked; what came of it is in Status
	Username         string   `json:"username,omitempty"`
	TargetUsername   string   `json:"target_username,omitempty"`
	SecretFile       string   `json:"secret_file,omitempty"` // in place of secrets in the request
	TargetSecretFile string   `json:"target_secret_file,omitempty"`
	HeaderDigest     string   `json:"header_digest"`
	DataDigest       string   `json:"data_digest"`
	MaxCommands      int64    `json:"max_commands"`
	QueueDepth       int64    `json:"queue_depth"`
	Scheduler        string   `json:"scheduler"`
	Replacement      int64    `json:"replacement_timeout"` // seconds

	portals []iscsi.Portal // all of them
	// Auth holds the secrets: in no journal or answer, nor in a log: fmt asks it how to print it, if the field is exported.
	Auth iscsi.Auth `json:"-"`
}

// notes is what Down needs beyond the device.
type notes struct {
	MadeNode bool            `json:"made_node,omitempty"` // whether the device node is ours to remove
	Unit     *iscsi.Identity `json:"unit,omitempty"`      // what the unit was when it was attached; nil: an earlier version did not ask
}

func (u *unit) names() names { return names{u.Initiator, u.Target} }

func (u *unit) of(s *iscsi.Session) iscsi.Unit { return s.Unit(int(u.LUN)) }

// target is how the target is called where it is waited for.
func (u *unit) target() string { return "iSCSI target " + u.Target + " at " + u.Host }

// Up logs in, unless another unit of the target has, and makes the logical unit a disk.
func (u *unit) Up(ctx context.Context, place driver.Placement) (driver.Status, error) {
	if err := u.readSecrets(ctx); err != nil {
		return driver.Status{}, err
	}
	ctx = waits.On(ctx, u.target())
	if err := u.keepSecrets(place.ID); err != nil {
		return driver.Status{}, err
	}
	session, err := u.driver.pool.acquire(ctx, int(u.LUN), place.ID, u.config())
	if err != nil {
		return driver.Status{}, errors.Join(err, u.driver.secrets.Forget(place.ID))
	}
	status, err := u.attach(ctx, session)
	if err != nil {
		return driver.Status{}, errors.Join(err, u.undo(ctx, place.ID, status))
	}
	u.driver.log.Debug("logical unit attached", logkey.Object, place.ID, logkey.Target, u.Target, logkey.LUN, u.LUN, logkey.Device, status.Device.Path)
	return status, nil
}

// Check implements driver.Unit. The target is not asked.
func (u *unit) Check(ctx context.Context, _ driver.Placement) (driver.Preview, error) {
	f := driver.Preview{
		Does:    fmt.Sprintf("attach LUN %d of %s", u.LUN, u.target()),
		Status:  driver.Status{Device: &driver.Device{ReadOnly: u.ReadOnly, Remote: true}},
		Unknown: []string{"whether the target answers, has this LUN, and lets this node in"},
	}
	if err := u.readSecrets(ctx); err != nil {
		return f, err
	}
	known, err := u.driver.pool.check(ctx, int(u.LUN), u.config())
	if !known {
		f.Unknown = append(f.Unknown, "the session with the target, which another attachment is changing")
	}
	return f, err
}

// attach makes the disk; what it returns with an error is there and must go again.
func (u *unit) attach(ctx context.Context, session *iscsi.Session) (driver.Status, error) {
	lu := u.of(session)
	if _, err := lu.Add(ctx); err != nil {
		return driver.Status{}, err
	}
	number, err := lu.Number()
	if err != nil {
		return driver.Status{}, err
	}
	path, made, err := u.driver.nodes.Ensure(number)
	if err != nil {
		return driver.Status{}, err
	}
	d := &driver.Device{Path: path, Number: number, Remote: true}
	d.Fail = lu.Delete()
	identity := u.identify(ctx, lu)
	text, err := json.Marshal(notes{MadeNode: made, Unit: &identity})
	if err == nil {
		err = errors.Join(lu.SetQueueDepth(ctx, int(u.QueueDepth)), lu.SetScheduler(ctx, u.Scheduler))
	}
	if err == nil {
		err = u.describe(ctx, d)
	}
	if rival := lu.Rival(identity); err == nil && rival != "" && !d.ReadOnly {
		err = &driver.Held{Device: "/dev/" + rival, Err: errs.New(errs.Conflict, "LUN %d of target %s is the same volume (%s) as /dev/%s of this node, which can be written to, too: use that one, or attach with ro",
			u.LUN, u.Target, identity.Names[0], rival)}
	}
	if err == nil {
		session.Guard(int(u.LUN), identity)
	}
	return driver.Status{Device: d, Notes: text, Warnings: u.surprises(d)}, err
}

// identify returns what the unit is. If it does not take the questions, what the kernel has found out must do.
func (u *unit) identify(ctx context.Context, lu iscsi.Unit) iscsi.Identity {
	identity, err := lu.Identify(ctx)
	if err != nil {
		u.driver.log.Warn("logical unit not identified", logkey.Target, u.Target, logkey.LUN, u.LUN, logkey.Error, err)
		return lu.Remembered()
	}
	return identity
}

// surprises tells of what is not as the client may expect.
func (u *unit) surprises(d *driver.Device) []string {
	if u.ReadOnly || !d.ReadOnly {
		return nil
	}
	return []string{fmt.Sprintf("iscsi.ro: LUN %d of target %s is write-protected there: the device is read-only", u.LUN, u.Target)}
}

// describe makes the disk read-only if asked, and finds out what it is like.
func (u *unit) describe(ctx context.Context, d *driver.Device) error {
	f, err := u.driver.helper.Open(ctx, "/", d.Path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	if u.ReadOnly {
		if err := block.SetReadOnly(u.driver.failpoint, f); err != nil {
			return err
		}
	}
	info, err := block.Stat(f)
	if err != nil {
		return err
	}
	if info.Size == 0 {
		return errs.New(errs.Remote, "LUN %d of target %s is empty", u.LUN, u.Target)
	}
	d.Sequence, d.ReadOnly = info.Sequence, info.ReadOnly
	return nil
}

// Down takes the disk away unless somebody uses it. The last unit of a session logs out. A disk that was not written to
// does not wait for a target that is gone: there is nothing to lose. Nor does one whose I/O fails anyway.
func (u *unit) Down(ctx context.Context, place driver.Placement, status driver.Status) error {
	lost := u.lost(place.ID, status)
	if err := u.detach(ctx, place.ID, status, lost != "" || status.Device != nil && status.Device.ReadOnly); err != nil {
		return err
	}
	if lost != "" {
		place.Lost("%s", lost)
	}
	return nil
}

// lost says what becomes of what was written to a disk whose I/O fails for good, or is empty.
func (u *unit) lost(id int64, status driver.Status) string {
	_, session := u.driver.pool.find(u.names(), int(u.LUN), id)
	if session == nil || status.Device == nil || status.Device.ReadOnly {
		return ""
	}
	const text = "%s was detached, but its last writes are lost or went to another volume: %v"
	switch wrong := session.Wrong(int(u.LUN)); {
	case wrong != nil:
		return fmt.Sprintf(text, status.Device.Path, wrong)
	case u.of(session).Failed():
		return fmt.Sprintf(text, status.Device.Path, "the kernel has it offline")
	}
	return ""
}

// ForceDown is Down that does not wait for a target that is gone.
func (u *unit) ForceDown(ctx context.Context, place driver.Placement, status driver.Status) (warning string, err error) {
	state, _ := u.driver.pool.state(u.names())
	lost := u.lost(place.ID, status)
	if err := u.detach(ctx, place.ID, status, true); err != nil {
		return "", err
	}
	if lost != "" {
		return lost, nil
	}
	if state != iscsi.LoggedIn && status.Device != nil && !status.Device.ReadOnly {
		warning = fmt.Sprintf("%s was removed while target %s was unreachable: unwritten data is lost", status.Device.Path, u.Target)
	}
	return warning, nil
}

func (u *unit) detach(ctx context.Context, id int64, status driver.Status, force bool) error {
	ctx = waits.On(ctx, u.target())
	if s, session := u.driver.pool.find(u.names(), int(u.LUN), id); s != nil {
		if err := u.quit(ctx, s, session, force); err != nil {
			return err
		}
		u.driver.log.Debug("logical unit detached", logkey.Object, id, logkey.Target, u.Target, logkey.LUN, u.LUN)
	}
	return errors.Join(u.removeNode(status), u.driver.secrets.Forget(id))
}

// quit takes the disk away and leaves the session, which may be gone already.
func (u *unit) quit(ctx context.Context, s *shared, session *iscsi.Session, force bool) error {
	if session != nil {
		ended := waits.Begin(ctx, fmt.Sprintf("detach LUN %d", u.LUN))
		err := u.of(session).Detach(ctx, force)
		ended(errs.Is(err, errs.Deadline))
		if err != nil {
			return err
		}
		session.Release(int(u.LUN))
	}
	return u.driver.pool.leave(ctx, s, int(u.LUN), false)
}

// undo removes what there is of a unit that could not come up. Nobody will try again.
func (u *unit) undo(ctx context.Context, id int64, status driver.Status) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	s, session := u.driver.pool.find(u.names(), int(u.LUN), id)
	session.Release(int(u.LUN))
	return errors.Join(u.of(session).Detach(ctx, true), u.driver.pool.leave(ctx, s, int(u.LUN), true), u.removeNode(status), u.driver.secrets.Forget(id))
}

func (u *unit) removeNode(status driver.Status) error {
	var n notes
	if status.Device == nil || json.Unmarshal(status.Notes, &n) != nil || !n.MadeNode {
		return nil
	}
	return u.driver.nodes.Remove(status.Device.Path, status.Device.Number)
}

// Show writes the definition without the secrets, and what the session does.
func (u *unit) Show(out driver.Object, status driver.Status, _ []driver.Object) {
	m := &models.AttachIscsi{
		Initiator: new(u.Initiator), Target: new(u.Target), Host: new(u.Host), Port: new(u.Port), Portals: u.Portals,
		Lun: u.LUN, Ro: new(u.ReadOnly), HeaderDigest: new(u.HeaderDigest), DataDigest: new(u.DataDigest),
		MaxComands: new(u.MaxCommands), QueueDepth: new(u.QueueDepth), Scheduler: new(u.Scheduler), ReplacementTimeout: new(u.Replacement),
	}
	if u.Username != "" {
		m.Auth = &models.IscsiAuth{
			Username: u.Username, SecretFile: u.SecretFile, TargetUsername: u.TargetUsername, TargetSecretFile: u.TargetSecretFile,
		}
	}
	if status.Device != nil {
		m.Ro = new(status.Device.ReadOnly)
		u.showSession(m)
	}
	out.Attach.Iscsi, out.Attach.Source = m, u.Target+" at "+u.Host
}

// showSession shows what the session does, and the digests that the two sides have agreed on.
func (u *unit) showSession(m *models.AttachIscsi) {
	session, ok := u.driver.pool.session(u.names())
	if !ok {
		return
	}
	m.SessionState = session.State().String()
	if header, data, ok := session.Digests(); ok {
		word := map[bool]string{false: digestNone, true: digestCRC32C}
		m.HeaderDigest, m.DataDigest = new(word[header]), new(word[data])
	}
}

// IsStill implements driver.Unit: the state of the session changes by itself.
func (*unit) IsStill(driver.Status) bool { return false }

// Changes is the state of the session, or empty: driver.Changing.
func (u *unit) Changes(driver.Status) string {
	state, ok := u.driver.pool.state(u.names())
	if !ok {
		return ""
	}
	return state.String()
}
