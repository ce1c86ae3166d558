package iscsi

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"time"
)

// probe is a session without the kernel, which only asks logical units who they are. It comes before a login by the kernel, which lets
// the I/O flow that waits: that must not reach another volume.
type probe struct {
	tcp  net.Conn
	full bool // the login is over
	negotiated
	tag, cmdSN uint32
}

// Opcodes, RFC 7143, 11.2.1.2.
const (
	opCommand = 0x01
	opReply   = 0x21
	opDataIn  = 0x25
	opReject  = 0x3f
)

// theTries is how often a question is asked whose answer may be another the next time.
const theTries = 5

// probe logs in as the kernel would, asks the units, and logs out.
func (c *Config) probe(ctx context.Context, tcp net.Conn, luns []int) (map[int]Identity, map[int]error, error) {
	defer context.AfterFunc(ctx, func() { _ = tcp.SetDeadline(time.Unix(1, 0)) })()
	p := &probe{tcp: tcp, tag: 1, cmdSN: 1}
	agreed, err := c.login(ctx, p.exchange)
	if err != nil {
		return nil, nil, late(ctx, err)
	}
	p.negotiated, p.full = agreed, true
	found, absent := map[int]Identity{}, map[int]error{}
	for _, lun := range luns {
		id, err := p.identify(lun)
		switch {
		case errors.Is(err, ErrAbsent):
			absent[lun] = err
		case err != nil:
			return nil, nil, late(ctx, fail(Remote, "ask LUN %d who it is: %w", lun, err))
		default:
			found[lun] = id
		}
	}
	p.bye()
	return found, absent, nil
}

// exchange sends a login request and returns the response.
func (p *probe) exchange(ctx context.Context, q pdu) (pdu, error) {
	binary.BigEndian.PutUint32(q.header[16:], p.tag)
	binary.BigEndian.PutUint32(q.header[24:], p.cmdSN)
	err := p.write(q)
	var r pdu
	if err == nil {
		r, err = p.read()
	}
	switch {
	case ctx.Err() != nil && err != nil:
		return r, context.Cause(ctx)
	case err != nil:
		return r, fail(Remote, "%w (%w)", errClosed, err)
	}
	return r, nil
}

func (p *probe) identify(lun int) (Identity, error) {
	var answers []Answer
	for _, q := range questions() {
		a, err := p.ask(lun, q)
		for n := 1; err == nil && a.passing() && n < theTries; n++ {
			a, err = p.ask(lun, q)
		}
		if err != nil {
			return Identity{}, err
		}
		answers = append(answers, a)
	}
	return parseIdentity(answers)
}

// ask is one SCSI command, RFC 7143, 11.3.
func (p *probe) ask(lun int, q Question) (a Answer, err error) {
	const finalReadSimple = 0x80 | 0x40 | 1
	var command pdu
	h := &command.header
	h[0], h[1] = opCommand, finalReadSimple
	binary.BigEndian.PutUint16(h[8:], uint16(lun)) // as the kernel does
	p.tag++
	binary.BigEndian.PutUint32(h[16:], p.tag)
	binary.BigEndian.PutUint32(h[20:], uint32(q.Length))
	binary.BigEndian.PutUint32(h[24:], p.cmdSN)
	binary.BigEndian.PutUint32(h[28:], p.statSN)
	copy(h[32:], q.Command)
	p.cmdSN++
	if err := p.write(command); err != nil {
		return a, err
	}
	a.data = make([]byte, q.Length)
	for {
		r, err := p.read()
		if err != nil {
			return a, err
		}
		if over, err := p.take(r, &a); over || err != nil {
			return a, err
		}
	}
}

// take reads a PDU that belongs to the command with the last tag, and reports whether it is the last one.
func (p *probe) take(r pdu, a *Answer) (over bool, err error) {
	const hasStatus = 1
	h := &r.header
	switch op := r.opcode(); {
	case op == opReject:
		return false, errors.New("the target rejects the command")
	case (op == opDataIn || op == opReply) && binary.BigEndian.Uint32(h[16:]) != p.tag:
		return false, errors.New("the target answers another command")
	case op == opDataIn:
		if at := binary.BigEndian.Uint32(h[40:]); int64(at) < int64(len(a.data)) {
			copy(a.data[at:], r.data)
		}
		if h[1]&hasStatus == 0 {
			return false, nil
		}
	case op == opReply:
		if h[2] != 0 {
			return false, fmt.Errorf("the target does not do the command (response %#x)", h[2])
		}
		a.sense(r.data)
	default:
		return false, nil // such as a ping, which need not be answered in so short a time
	}
	a.status = h[3]
	p.statSN = binary.BigEndian.Uint32(h[24:]) + 1
	return true, nil
}

// sense reads the sense data of a response, which follow their length: SPC-4, 4.5.
func (a *Answer) sense(data []byte) {
	const head, fixed, descriptor = 2, 0x70, 0x72
	if len(data) < head+14 {
		return
	}
	data = data[head:]
	switch data[0] & 0x7e {
	case fixed:
		a.key, a.asc, a.ascq = data[2]&0xf, data[12], data[13]
	case descriptor:
		a.key, a.asc, a.ascq = data[1]&0xf, data[2], data[3]
	}
}

// bye logs out. If that fails the target finds out by the end of the connection.
func (p *probe) bye() {
	q := logout()
	p.tag++
	binary.BigEndian.PutUint32(q.header[16:], p.tag)
	binary.BigEndian.PutUint32(q.header[24:], p.cmdSN)
	binary.BigEndian.PutUint32(q.header[28:], p.statSN)
	err := p.write(q)
	for err == nil {
		var r pdu
		if r, err = p.read(); r.opcode() == opLogoutReply {
			return
		}
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func digest(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, castagnoli))
}

// padded fills b up to whole words.
func padded(b []byte) []byte { return append(b[:len(b):len(b)], make([]byte, -len(b)&3)...) }

// write sends a PDU with the digests that were agreed on.
func (p *probe) write(q pdu) error {
	putLength(&q.header, len(q.data))
	bytes := q.header[:]
	if p.full && p.headerDigest {
		bytes = append(bytes, digest(bytes)...)
	}
	if len(q.data) > 0 {
		data := padded(q.data)
		bytes = append(bytes, data...)
		if p.full && p.dataDigest {
			bytes = append(bytes, digest(data)...)
		}
	}
	_, err := p.tcp.Write(bytes)
	return err
}

// read receives the next PDU.
func (p *probe) read() (r pdu, err error) {
	head, err := p.part(headerSize, false)
	if err != nil {
		return r, err
	}
	copy(r.header[:], head)
	if more := int(r.header[4]) * 4; more > 0 || p.full && p.headerDigest {
		extra, err := p.part(more, false)
		if err != nil {
			return r, err
		}
		if err := p.check(append(head, extra...), p.headerDigest); err != nil {
			return r, err
		}
	}
	length := int(r.header[5])<<16 | int(r.header[6])<<8 | int(r.header[7])
	if length > maxReceive {
		return r, fmt.Errorf("the target sends %d bytes at once", length)
	}
	if length > 0 {
		data, err := p.part((length+3)&^3, p.dataDigest)
		if err != nil {
			return r, err
		}
		r.data = data[:length]
	}
	return r, nil
}

// part reads n bytes, and their digest if there is one.
func (p *probe) part(n int, digested bool) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(p.tcp, b); err != nil {
		return nil, err
	}
	return b, p.check(b, digested)
}

// check reads the digest of b and compares.
func (p *probe) check(b []byte, digested bool) error {
	if !p.full || !digested {
		return nil
	}
	theirs := make([]byte, 4)
	if _, err := io.ReadFull(p.tcp, theirs); err != nil {
		return err
	}
	if string(theirs) != string(digest(b)) {
		return errors.New("a digest is wrong")
	}
	return nil
}
