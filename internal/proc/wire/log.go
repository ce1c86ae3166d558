package wire

import (
	"encoding/binary"
	"time"
)

// The log of a container is a file NAME and, when that was full once, the part before it, NAME.1. The part before that is
// gone. Each part has an index beside it, which tells when what was written. The supervisor alone writes them, so:
//
//	NAME         the part that is being written; there is always one, of mode LogOpen
//	NAME.1       the part before it, of mode LogFull: nothing is added to it any more, and NAME follows it
//	NAME.idx     the index of NAME: LogMarks, the first of which names the file that it is for
//	NAME.1.idx   that of NAME.1
//	NAME.new     with its index: the next part, before it takes the name
//
// Once a part is LogFull the next one is there. A part that has no name any more was replaced, and is then emptied whoever
// reads it, or the whole log was removed, and then it is not.
const (
	LogOlder = ".1"
	LogIndex = ".idx"
	LogNext  = ".new"
	LogOpen  = 0o600
	LogFull  = 0o400
)

// LogMarkEvery is the least time between two LogMarks.
const LogMarkEvery = 100 * time.Millisecond

// MinLogSize is the least Config.LogSize, in bytes: parts of less than a pipe takes would be full before anybody has read them.
const MinLogSize = 64 << 10

// LogMark says that what begins at Offset, in bytes from the part's begin, was written at the time At, in nanoseconds since
// 1970, or after it, and what is before Offset not later. In the first one At is the part's inode number.
type LogMark struct {
	At     int64
	Offset int64
}

// LogMarkSize is how long an encoded LogMark is, in bytes.
const LogMarkSize = 16

// Encode returns m as it stands in the index.
func (m LogMark) Encode() [LogMarkSize]byte {
	var b [LogMarkSize]byte
	binary.LittleEndian.PutUint64(b[:8], uint64(m.At))
	binary.LittleEndian.PutUint64(b[8:], uint64(m.Offset))
	return b
}

// ParseLogMark is the opposite of Encode.
func ParseLogMark(b [LogMarkSize]byte) LogMark {
	return LogMark{At: int64(binary.LittleEndian.Uint64(b[:8])), Offset: int64(binary.LittleEndian.Uint64(b[8:]))}
}
