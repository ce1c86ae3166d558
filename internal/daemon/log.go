package daemon

import (
	"io"
	"log/slog"
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
