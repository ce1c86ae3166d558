package daemon

import (
	"io"
	"log/slog"

	"github.com/kraken-hpc/imageapi/internal/audit"
)

// NewLog returns a logger that writes to out as cfg says.
func NewLog(cfg Log, out io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.Level)) // the choices of the flag are all known
	options := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(out, options))
	}
	return slog.New(slog.NewTextHandler(out, options))
}

// openAudit opens the audit log, or returns nil if there is to be none.
func openAudit(cfg Log, log *slog.Logger) (*audit.Log, error) {
	if cfg.Audit == "" {
		return nil, nil
	}
	return audit.Open(audit.Options{Sink: cfg.Audit, Size: int64(cfg.AuditSize), Files: cfg.AuditFiles, Refuse: cfg.AuditFull == "refuse", Log: log})
}
