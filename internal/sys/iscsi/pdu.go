package iscsi

import (
	"encoding/binary"
	"fmt"
)

// headerSize is that of a basic header segment in bytes.
const headerSize = 48

// pdu is a protocol data unit without padding and digests, which are the kernel's.
type pdu struct {
	header [headerSize]byte
	data   []byte
}

// Opcodes, RFC 7143, 11.2.1.2.
const (
	opImmediate   = 0x40
	opLogin       = 0x03
	opLogout      = 0x06
	opLoginReply  = 0x23
	opLogoutReply = 0x26
	opAsync       = 0x32
	opMask        = 0x3f
)

func (p *pdu) opcode() byte { return p.header[0] & opMask }

// stage is a part of the login.
type stage byte

const (
	security    stage = 0
	operational stage = 1
	fullFeature stage = 3
)

// request is a login request, RFC 7143, 11.12. The kernel fills in the task tag and CmdSN.
type request struct {
	transit       bool // ready to go on to next
	current, next stage
	isid          [6]byte
	expStatSN     uint32
	text          []byte
}

const (
	flagTransit  = 0x80
	flagContinue = 0x40
)

func (r *request) pdu() pdu {
	p := pdu{data: r.text}
	h := &p.header
	h[0] = opImmediate | opLogin
	h[1] = byte(r.current) << 2
	if r.transit {
		h[1] |= flagTransit | byte(r.next)
	}
	putLength(h, len(r.text))
	copy(h[8:], r.isid[:])
	binary.BigEndian.PutUint32(h[28:], r.expStatSN)
	return p
}

// putLength sets the length of the data.
func putLength(h *[headerSize]byte, n int) { h[5], h[6], h[7] = byte(n>>16), byte(n>>8), byte(n) }

// reply is a login response, RFC 7143, 11.13.
type reply struct {
	transit, more bool
	current, next stage
	statSN        uint32
	status        status
	text          []byte
}

func parseReply(p pdu) (reply, error) {
	h := &p.header
	if op := p.opcode(); op != opLoginReply {
		return reply{}, fmt.Errorf("the target answers with a PDU of type %#x, not a login response", op)
	}
	r := reply{
		transit: h[1]&flagTransit != 0,
		more:    h[1]&flagContinue != 0,
		current: stage(h[1] >> 2 & 3),
		next:    stage(h[1] & 3),
		statSN:  binary.BigEndian.Uint32(h[24:]),
		status:  status{h[36], h[37]},
		text:    p.data,
	}
	if r.transit && r.more {
		return reply{}, fmt.Errorf("the target sends contradictory flags")
	}
	return r, nil
}

// logout asks to close the session, RFC 7143, 11.14.
func logout() pdu {
	const closeSession = 0
	var p pdu
	p.header[0] = opImmediate | opLogout
	p.header[1] = 0x80 | closeSession
	return p
}

// endsConnection reports whether an asynchronous message of the target means the end of the connection: it asks us to log out,
// or drops the connection or the session, RFC 7143, 11.9.1.
func (p *pdu) endsConnection() bool {
	const first, last = 1, 3
	event := p.header[36]
	return p.opcode() == opAsync && event >= first && event <= last
}
