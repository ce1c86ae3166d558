package dm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Section is one target of a device's table.
type Section struct {
	Type   string
	Start  int64 // in bytes, on the device
	Size   int64
	Params string
}

// shown gives, for the types of target that show another device byte by byte, the places of that device and of the offset in the
// parameters; an offset of -1 is none.
var shown = map[string][2]int{
	"linear": {0, 1}, "flakey": {0, 1}, "delay": {0, 1}, "dust": {0, 1}, "log-writes": {0, -1}, "crypt": {3, 4}, "verity": {1, -1},
}

// Shows returns the device that a section shows byte by byte, and from which byte on. If it is no such section, ok is false.
func (s Section) Shows() (device uint64, offset int64, ok bool) {
	place, ok := shown[s.Type]
	fields := strings.Fields(s.Params)
	if !ok || len(fields) <= max(place[0], place[1]) {
		return 0, 0, false
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(fields[place[0]], "%d:%d", &major, &minor); err != nil {
		return 0, 0, false
	}
	if place[1] >= 0 {
		sectors, err := strconv.ParseInt(fields[place[1]], 10, 64)
		if err != nil {
			return 0, 0, false
		}
		offset = sectors * sectorSize
	}
	return unix.Mkdev(major, minor), offset, true
}

// Targets returns the table of a device by its number (st_rdev), or ErrNone. It waits for nothing.
func (m Mapper) Targets(number uint64) ([]Section, error) {
	control, err := os.Open(controlNode)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
	}
	defer control.Close()
	const most = 16 << 20 // bytes: no table is as long
	for size := roomSize; size <= most; size *= 4 {
		r := sizedRequest(size, "", unix.DM_NOFLUSH_FLAG|unix.DM_STATUS_TABLE_FLAG)
		r.head().Dev = number
		if err := r.ask(control, unix.DM_TABLE_STATUS); errors.Is(err, unix.ENXIO) {
			return nil, ErrNone
		} else if err != nil {
			return nil, fmt.Errorf("read the table of device %d:%d: %w", unix.Major(number), unix.Minor(number), err)
		}
		if r.head().Flags&unix.DM_BUFFER_FULL_FLAG == 0 {
			return r.sections(), nil
		}
	}
	return nil, fmt.Errorf("read the table of device %d:%d: the table is too long", unix.Major(number), unix.Minor(number))
}

// sections returns all targets in an answer.
func (r request) sections() (all []Section) {
	start := int(r.head().Data_start)
	at := start
	for range r.head().Target_count {
		if at+specSize > len(r) {
			break
		}
		spec := (*unix.DmTargetSpec)(unsafe.Pointer(&r[at]))
		all = append(all, Section{
			Type: untilNUL(spec.Target_type[:]), Start: int64(spec.Sector_start) * sectorSize, Size: int64(spec.Length) * sectorSize, Params: untilNUL(r[at+specSize:]),
		})
		at = start + int(spec.Next)
	}
	return all
}
