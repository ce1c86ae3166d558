package iscsi

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Identity tells a logical unit from all others of any target. A target may give its units neither names nor a serial number:
// then only their sizes can be compared.
type Identity struct {
	Names  []string `json:"names,omitempty"`  // designators of VPD page 0x83, such as "naa.6001405…"
	Serial string   `json:"serial,omitempty"` // VPD page 0x80
	Size   int64    `json:"size"`             // in bytes
	Block  int64    `json:"block"`            // bytes of a logical block
}

// ErrAbsent is the error of a logical unit that the target does not have.
var ErrAbsent = errors.New("the target does not have it any more")

// changed says how now differs from id, or returns "". A unit that grew is the same.
func (id *Identity) changed(now Identity) string {
	switch {
	case !id.same(now):
		return fmt.Sprintf("is another volume now (%s), not the one that was attached (%s)", now.name(), id.name())
	case now.Size == 0 || id.Size == 0:
		return "" // not known
	case now.Block != id.Block:
		return fmt.Sprintf("has logical blocks of %d bytes now, not %d", now.Block, id.Block)
	case now.Size < id.Size:
		return fmt.Sprintf("shrank from %d to %d bytes", id.Size, now.Size)
	}
	return ""
}

// kinds are the kinds of designators, the most trustworthy first. Those further down may not be unique.
var kinds = []string{"naa.", "eui.", "uuid.", "name.", "t10."}

// same compares by the best that both units have. A unit without any identity can be any unit.
func (id *Identity) same(now Identity) bool {
	for _, kind := range kinds {
		of := func(names []string) []string {
			return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !strings.HasPrefix(n, kind) })
		}
		if was, is := of(id.Names), of(now.Names); len(was) > 0 && len(is) > 0 {
			return slices.ContainsFunc(was, func(n string) bool { return slices.Contains(is, n) })
		}
	}
	if id.Serial == "" && len(id.Names) == 0 {
		return true
	}
	return id.Serial == now.Serial && id.Serial != ""
}

func (id *Identity) name() string {
	switch {
	case len(id.Names) > 0:
		return id.Names[0]
	case id.Serial != "":
		return "serial number " + id.Serial
	}
	return "without a name"
}

// Question is a SCSI command that reads.
type Question struct {
	Command []byte
	Length  int // of the answer, at most
}

// Answer is what a logical unit replies to a Question. Helpers write it as AnswerHead bytes (status, sense key, ASC, ASCQ), then the data,
// which zeros fill up to Question.Length.
type Answer struct {
	status, key, asc, ascq byte
	data                   []byte
}

// AnswerHead is the length of an Answer without its data.
const AnswerHead = 4

// questions are those that tell the identity of a unit: INQUIRY, its pages 0x83 and 0x80, and READ CAPACITY (16).
func questions() []Question {
	inquiry := func(page byte, length int) Question {
		vital := byte(0)
		if page != 0 {
			vital = 1
		}
		return Question{[]byte{0x12, vital, page, byte(length >> 8), byte(length), 0}, length}
	}
	const capacity = 32
	return []Question{inquiry(0, 36), inquiry(0x83, 1024), inquiry(0x80, 252), {[]byte{0x9e, 0x10, 13: capacity, 15: 0}, capacity}}
}

const (
	statusGood  = 0
	statusCheck = 2
	statusBusy  = 0x08
	statusFull  = 0x28

	senseIllegal   = 5
	senseAttention = 6
)

// passing reports whether the unit may reply otherwise the next time.
func (a Answer) passing() bool {
	return a.status == statusBusy || a.status == statusFull || a.status == statusCheck && a.key == senseAttention
}

func (a Answer) absent() bool {
	const unsupported = 0x25
	return a.status == statusCheck && a.key == senseIllegal && a.asc == unsupported
}

// err is the error of an answer that is none. A page that the unit does not have is empty.
func (a Answer) err(optional bool) error {
	switch {
	case a.status == statusGood, optional && a.status == statusCheck && a.key == senseIllegal:
		return nil
	case a.absent():
		return ErrAbsent
	}
	return fmt.Errorf("SCSI status %#x, sense %x/%02x/%02x", a.status, a.key, a.asc, a.ascq)
}

// parseIdentity reads the answers to questions.
func parseIdentity(answers []Answer) (id Identity, err error) {
	if len(answers) != len(questions()) {
		return id, fmt.Errorf("%d answers", len(answers))
	}
	inquiry, names, serial, capacity := answers[0], answers[1], answers[2], answers[3]
	for i, a := range answers {
		if a.absent() {
			return id, ErrAbsent
		}
		if err := a.err(i > 0); err != nil {
			return id, err
		}
	}
	const head = 12 // what is read of the capacity
	if len(inquiry.data) == 0 || len(capacity.data) < head {
		return id, errors.New("its answers are cut off")
	}
	if qualifier := inquiry.data[0] >> 5; qualifier != 0 {
		return id, ErrAbsent
	}
	if names.status == statusGood {
		id.Names = parseNames(names.data)
	}
	if serial.status == statusGood {
		id.Serial = serialOf(serial.data)
	}
	if capacity.status != statusGood {
		return id, nil // small units need not have READ CAPACITY (16)
	}
	id.Block = int64(binary.BigEndian.Uint32(capacity.data[8:]))
	id.Size = int64(binary.BigEndian.Uint64(capacity.data)+1) * id.Block
	return id, nil
}

func serialOf(data []byte) string { return strings.Trim(string(page(data)), " \x00") }

// page returns what a VPD page holds after its head.
func page(data []byte) []byte {
	const head = 4
	if len(data) < head {
		return nil
	}
	length := int(binary.BigEndian.Uint16(data[2:]))
	return data[head:min(len(data), head+length)]
}

// parseNames reads the designators of the unit itself; others are those of the port that it was asked at. The best come first.
func parseNames(data []byte) (names []string) {
	const head = 4
	words := map[byte]string{1: "t10.", 2: "eui.", 3: "naa.", 8: "name.", 10: "uuid."}
	for rest := page(data); len(rest) >= head; {
		length := int(rest[3])
		if len(rest) < head+length {
			break
		}
		association, word := rest[1]>>4&3, words[rest[1]&0xf]
		if association == 0 && word != "" && length > 0 {
			names = append(names, word+hex.EncodeToString(rest[head:head+length]))
		}
		rest = rest[head+length:]
	}
	rank := func(n string) int {
		return slices.IndexFunc(kinds, func(k string) bool { return strings.HasPrefix(n, k) })
	}
	slices.SortStableFunc(names, func(a, b string) int { return rank(a) - rank(b) })
	return names
}
