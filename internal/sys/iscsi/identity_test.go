package iscsi

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

// pageOf makes a VPD page of designators, each "kind:association:text".
func pageOf(designators ...string) []byte {
	var body []byte
	for _, d := range designators {
		var kind, association byte
		text := d[strings.LastIndex(d, ":")+1:]
		if _, err := fmt.Sscanf(d, "%d:%d:", &kind, &association); err != nil {
			panic(err)
		}
		body = append(body, 1, association<<4|kind, 0, byte(len(text)))
		body = append(body, text...)
	}
	return append([]byte{0, 0x83, byte(len(body) >> 8), byte(len(body))}, body...)
}

func TestNames(t *testing.T) {
	// Those of ports (association 1) are of the way to a unit, not of the unit.
	got := parseNames(pageOf("1:0:LIO", "3:0:abc", "4:1:x", "3:1:port"))
	if want := "[naa.616263 t10.4c494f]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
	for n := range pageOf("1:0:LIO", "3:0:abc") { // cut off anywhere
		parseNames(pageOf("1:0:LIO", "3:0:abc")[:n])
	}
}

func TestChanged(t *testing.T) {
	unit := Identity{Names: []string{"naa.1", "t10.a"}, Serial: "s", Size: 1 << 20, Block: 512}
	with := func(change func(*Identity)) Identity {
		id := unit
		change(&id)
		return id
	}
	for name, c := range map[string]struct {
		was, now Identity
		want     string
	}{
		"same":                   {unit, unit, ""},
		"grown":                  {unit, with(func(i *Identity) { i.Size *= 2 }), ""},
		"one more name":          {unit, with(func(i *Identity) { i.Names = []string{"naa.0", "naa.1"} }), ""},
		"size not known":         {unit, with(func(i *Identity) { i.Size, i.Block = 0, 0 }), ""},
		"never named":            {Identity{Size: 512, Block: 512}, with(func(i *Identity) { i.Size = 512 }), ""},
		"shrunk":                 {unit, with(func(i *Identity) { i.Size /= 2 }), "shrank from 1048576 to 524288 bytes"},
		"blocks":                 {unit, with(func(i *Identity) { i.Block = 4096 }), "logical blocks of 4096 bytes"},
		"another name":           {unit, with(func(i *Identity) { i.Names = []string{"naa.2", "t10.a"} }), "is another volume now (naa.2)"},
		"weaker names differ":    {unit, with(func(i *Identity) { i.Names = []string{"naa.1", "t10.b"} }), ""},
		"another serial, alone":  {Identity{Serial: "a"}, Identity{Serial: "b"}, "is another volume now (serial number b)"},
		"no name any more":       {Identity{Names: []string{"naa.1"}}, Identity{}, "is another volume now (without a name)"},
		"no serial number":       {Identity{Serial: "a"}, Identity{}, "is another volume now"},
		"names of another kinds": {Identity{Names: []string{"naa.1"}, Serial: "a"}, Identity{Names: []string{"eui.1"}, Serial: "b"}, "is another volume now"},
	} {
		got := c.was.changed(c.now)
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// unitOver serves one logical unit on a connection, with digests, as a target does that sends its data in two parts.
func unitOver(conn net.Conn, id string, absent bool) error {
	p := &probe{tcp: conn}
	r := bufio.NewReader(conn)
	p.tcp = readWriter{conn, r}
	for {
		q, err := p.read()
		if err != nil {
			return err
		}
		var a pdu
		copy(a.header[16:20], q.header[16:20])
		switch q.opcode() {
		case opLogin:
			a.header[0], a.header[1] = opLoginReply, q.header[1]
			if stage(q.header[1]>>2&3) == operational {
				a.data = encode([]pair{{"HeaderDigest", "CRC32C"}, {"DataDigest", "CRC32C"}})
			} else {
				a.data = encode([]pair{{"AuthMethod", "None"}})
			}
			if err := p.write(a); err != nil {
				return err
			}
			if q.header[1]&3 == byte(fullFeature) {
				p.full, p.headerDigest, p.dataDigest = true, true, true
			}
			continue
		case opLogout:
			a.header[0] = opLogoutReply
			return p.write(a)
		}
		data := make([]byte, 36)
		switch cdb := q.header[32:48]; {
		case absent:
			a.header[0], a.header[3] = opReply, statusCheck
			sense := make([]byte, 18)
			sense[0], sense[2], sense[12] = 0x70, senseIllegal, 0x25
			a.data = append([]byte{0, 18}, sense...)
			if err := p.write(a); err != nil {
				return err
			}
			continue
		case cdb[0] == 0x9e:
			binary.BigEndian.PutUint64(data, 2047)
			binary.BigEndian.PutUint32(data[8:], 512)
		case cdb[1] == 1:
			data = pageOf("3:0:" + id)
		}
		a.header[0], a.data = opDataIn, data[:4]
		if err := p.write(a); err != nil {
			return err
		}
		a.data = data[4:]
		a.header[1] = 0x81
		binary.BigEndian.PutUint32(a.header[40:], 4)
		if err := p.write(a); err != nil {
			return err
		}
	}
}

type readWriter struct {
	net.Conn
	io.Reader
}

func (r readWriter) Read(b []byte) (int, error) { return r.Reader.Read(b) }

func TestProbe(t *testing.T) {
	for _, absent := range []bool{false, true} {
		ours, theirs := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- unitOver(theirs, "abc", absent) }()
		c := Config{Initiator: "iqn.a", Target: "iqn.b"}
		found, missing, err := c.probe(t.Context(), ours, []int{3})
		if err != nil {
			t.Fatal(err)
		}
		switch id := found[3]; {
		case absent && !errors.Is(missing[3], ErrAbsent):
			t.Errorf("it found %+v, %v", found, missing)
		case !absent && (fmt.Sprint(id.Names) != "[naa.616263]" || id.Size != 1<<20 || id.Block != 512):
			t.Errorf("it found %+v", id)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		ours.Close()
	}
}

// A target that falls silent costs the time of the context.
func TestProbeSilent(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, _ = theirs.Read(make([]byte, 48))
		cancel()
	}()
	c := Config{Initiator: "iqn.a", Target: "iqn.b"}
	if _, _, err := c.probe(ctx, ours, []int{0}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
