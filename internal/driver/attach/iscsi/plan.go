package iscsi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/hostport"
	"github.com/kraken-hpc/imageapi/internal/driver/secretfile"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/iscsi"
	"github.com/kraken-hpc/imageapi/models"
)

// Defaults and limits, as in swagger.yaml.
const (
	defaultMaxCommands = 128
	defaultQueueDepth  = 16
	defaultScheduler   = "mq-deadline"
	defaultReplacement = 120

	minMaxCommands = 32 // of 16, the kernel's minimum, it would keep all but one
	maxMaxCommands = 4096
	keptCommands   = 15 // of a session, by the kernel: ISCSI_MGMT_CMDS_MAX
	maxReplacement = 24 * 60 * 60
	maxLUN         = 1<<14 - 1
	maxPort        = 1<<16 - 1
	maxSecret      = 255
	maxName        = 223 // of an iSCSI name: RFC 7143, 4.2.7.1
)

const (
	digestNone   = "none"
	digestCRC32C = "crc32c"
)

// newUnit recovers a definition and fills in the defaults.
func newUnit(d *Driver, m *models.AttachIscsi, faults *errs.Faults) *unit {
	u := &unit{
		driver:       d,
		Initiator:    driver.Value(m.Initiator),
		Target:       driver.Value(m.Target),
		Host:         driver.Value(m.Host),
		Port:         driver.ValueOr(m.Port, iscsi.DefaultPort),
		Portals:      slices.Clone(m.Portals),
		LUN:          m.Lun,
		ReadOnly:     driver.Value(m.Ro),
		HeaderDigest: driver.ValueOr(m.HeaderDigest, digestNone),
		DataDigest:   driver.ValueOr(m.DataDigest, digestNone),
		MaxCommands:  driver.ValueOr(m.MaxComands, defaultMaxCommands),
		QueueDepth:   driver.ValueOr(m.QueueDepth, defaultQueueDepth),
		Scheduler:    driver.ValueOr(m.Scheduler, defaultScheduler),
		Replacement:  driver.ValueOr(m.ReplacementTimeout, defaultReplacement),
	}
	if u.Scheduler == "noop" {
		u.Scheduler = "none"
	}
	if m.Auth != nil {
		u.setAuth(m.Auth, faults)
	}
	return u
}

// setAuth recovers who is who.
func (u *unit) setAuth(m *models.IscsiAuth, faults *errs.Faults) {
	u.Username, u.TargetUsername = m.Username, m.TargetUsername
	a := iscsi.Auth{Name: m.Username, Secret: driver.Value(m.Secret), TargetName: m.TargetUsername, TargetSecret: driver.Value(m.TargetSecret)}
	u.Auth = a
	if a.Name == "" {
		faults.Add("iscsi.auth.username", "is required: give the initiator's CHAP name")
	}
	checkText(faults, "iscsi.auth.username", a.Name)
	checkText(faults, "iscsi.auth.target_username", a.TargetName)
	u.SecretFile, u.TargetSecretFile = m.SecretFile, m.TargetSecretFile
	checkSecret(faults, "iscsi.auth.secret", a.Secret, u.SecretFile)
	switch {
	case a.TargetName == "" && (a.TargetSecret != "" || u.TargetSecretFile != ""):
		faults.Add("iscsi.auth.target_username", "is required with target_secret")
	case a.TargetName == "":
	case a.TargetSecret == a.Secret && a.Secret != "":
		faults.Add("iscsi.auth.target_secret", sameSecret)
	default:
		checkSecret(faults, "iscsi.auth.target_secret", a.TargetSecret, u.TargetSecretFile)
	}
}

const sameSecret = "must differ from secret: with the same one anybody could answer our question by asking us"

// checkSecret checks a secret, or the path of the file that it is in.
func checkSecret(faults *errs.Faults, path, secret, file string) {
	secretfile.Check(faults, path+"_file", file, secret)
	switch {
	case file != "":
	case secret == "":
		faults.Add(path, "is required, or %s_file: answers do not hold it, so it must be put in again", strings.TrimPrefix(path, "iscsi.auth."))
	case len(secret) > maxSecret:
		faults.Add(path, "must be at most %d bytes long", maxSecret)
	}
}

// readSecrets completes Auth with what is in files.
func (u *unit) readSecrets(ctx context.Context) error {
	for _, s := range []struct {
		field, file string
		into        *string
	}{{"iscsi.auth.secret_file", u.SecretFile, &u.Auth.Secret}, {"iscsi.auth.target_secret_file", u.TargetSecretFile, &u.Auth.TargetSecret}} {
		if s.file == "" {
			continue
		}
		text, err := secretfile.Read(ctx, u.driver.helper, s.file)
		if err == nil && len(text) > maxSecret {
			err = errs.New(errs.Invalid, "read %q: the secret must be at most %d bytes long", s.file, maxSecret)
		}
		if err != nil {
			return errs.At(s.field, err)
		}
		*s.into = text
	}
	if u.Auth.TargetName != "" && u.Auth.TargetSecret == u.Auth.Secret {
		return errs.At("iscsi.auth.target_secret_file", errs.New(errs.Invalid, sameSecret))
	}
	return nil
}

func checkText(faults *errs.Faults, path, text string) {
	if strings.ContainsFunc(text, unicode.IsControl) {
		faults.Add(path, "must not contain control characters")
	}
}

// check finds what can't be.
func (u *unit) check(faults *errs.Faults) {
	checkName(faults, "iscsi.initiator", u.Initiator)
	checkName(faults, "iscsi.target", u.Target)
	u.checkPortals(faults)
	checkRange(faults, "iscsi.lun", u.LUN, 0, maxLUN)
	checkDigest(faults, "iscsi.header_digest", u.HeaderDigest)
	checkDigest(faults, "iscsi.data_digest", u.DataDigest)
	checkRange(faults, "iscsi.replacement_timeout", u.Replacement, 1, maxReplacement)
	if u.MaxCommands < minMaxCommands || u.MaxCommands > maxMaxCommands || u.MaxCommands&(u.MaxCommands-1) != 0 {
		faults.Add("iscsi.max_comands", "must be a power of two from %d to %d", minMaxCommands, maxMaxCommands)
	} else {
		checkRange(faults, "iscsi.queue_depth", u.QueueDepth, 1, u.MaxCommands-keptCommands)
	}
	if u.Scheduler == "" || strings.ContainsFunc(u.Scheduler, isNoSchedulerRune) {
		faults.Add("iscsi.scheduler", "must be the name of an I/O scheduler, such as none or mq-deadline")
	}
}

func isNoSchedulerRune(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_')
}

func checkRange(faults *errs.Faults, path string, n, low, high int64) {
	if n < low || n > high {
		faults.Add(path, "must be from %d to %d", low, high)
	}
}

func checkDigest(faults *errs.Faults, path, digest string) {
	if digest != digestNone && digest != digestCRC32C {
		faults.Add(path, "must be %q or %q", digestNone, digestCRC32C)
	}
}

// checkName checks an iSCSI name's form: RFC 7143, 4.2.7.
func checkName(faults *errs.Faults, path, name string) {
	switch {
	case name == "":
		faults.Add(path, "is required: give an iSCSI name such as iqn.2026-05.org.example:name")
	case !strings.HasPrefix(name, "iqn.") && !strings.HasPrefix(name, "eui.") && !strings.HasPrefix(name, "naa."):
		faults.Add(path, "must begin with iqn., eui. or naa.")
	case len(name) > maxName:
		faults.Add(path, "must be at most %d bytes long", maxName)
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }):
		faults.Add(path, "must not contain blanks or control characters")
	}
}

func (u *unit) checkPortals(faults *errs.Faults) {
	checkRange(faults, "iscsi.port", u.Port, 1, maxPort)
	switch h, err := hostport.Parse(u.Host); {
	case u.Host == "":
		faults.Add("iscsi.host", "is required: give the name or address of the target's portal")
	case err != nil || h.Port != 0:
		faults.Add("iscsi.host", "must be a name or an address; give the port in its own field")
	default:
		u.portals = append(u.portals, iscsi.Portal{Host: h.String(), Port: int(u.Port)})
	}
	for i, text := range u.Portals {
		h, err := hostport.Parse(text)
		if err != nil {
			faults.Add(fmt.Sprintf("iscsi.portals[%d]", i), "%v", err)
			continue
		}
		u.portals = append(u.portals, iscsi.Portal{Host: h.String(), Port: int(cmp.Or(h.Port, iscsi.DefaultPort))})
	}
}

// config is what belongs to the session.
func (u *unit) config() iscsi.Config {
	return iscsi.Config{
		Initiator:    u.Initiator,
		Target:       u.Target,
		Portals:      u.portals,
		Auth:         u.Auth,
		HeaderDigest: u.HeaderDigest == digestCRC32C,
		DataDigest:   u.DataDigest == digestCRC32C,
		MaxCommands:  int(u.MaxCommands),
		Replacement:  time.Duration(u.Replacement) * time.Second,
	}
}
