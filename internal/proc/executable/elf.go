package executable

import (
	"encoding/binary"
	"runtime"
	"strconv"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// elfInterpreter returns the interpreter (the dynamic linker) of a program, or says that it is made for another
// machine. The layout is that of elf(5). A header that makes no sense is left to the kernel to complain about.
func elfInterpreter(file int, header []byte, path string) (string, *wire.Failure) {
	if len(header) < 64 {
		return "", &wire.Failure{Reason: wire.BadFormat, Path: path}
	}
	var order binary.ByteOrder = binary.LittleEndian
	if header[5] == 2 {
		order = binary.BigEndian
	}
	wide := header[4] == 2
	machine := order.Uint16(header[18:])
	if !runs(machine, wide) {
		return "", &wire.Failure{Reason: wire.WrongMachine, Path: path, Detail: strconv.Itoa(int(machine))}
	}
	offset, size, count := int64(order.Uint32(header[28:])), int(order.Uint16(header[42:])), int(order.Uint16(header[44:]))
	if wide {
		offset, size, count = int64(order.Uint64(header[32:])), int(order.Uint16(header[54:])), int(order.Uint16(header[56:]))
	}
	for i := range min(count, 64) {
		entry := readAt(file, offset+int64(i*size), size)
		if name, ok := interpreterIn(file, entry, order, wide); ok {
			return name, nil
		}
	}
	return "", nil
}

// interpreterIn returns the path that a program header names if it is of type PT_INTERP.
func interpreterIn(file int, entry []byte, order binary.ByteOrder, wide bool) (string, bool) {
	const ptInterp, longest = 3, 4096
	if len(entry) < 32 || wide && len(entry) < 56 || order.Uint32(entry) != ptInterp {
		return "", false
	}
	at, size := int64(order.Uint32(entry[4:])), uint64(order.Uint32(entry[16:]))
	if wide {
		at, size = int64(order.Uint64(entry[8:])), order.Uint64(entry[32:])
	}
	name := readAt(file, at, int(min(size, longest)))
	return strings.TrimRight(string(name), "\x00"), true
}

// runs tells whether this kernel may know a machine. 32-bit programs of the same family are left to it.
func runs(machine uint16, wide bool) bool {
	const i386, arm, x86_64, aarch64 = 3, 40, 62, 183
	switch runtime.GOARCH {
	case "amd64":
		return machine == x86_64 || machine == i386 && !wide
	case "arm64":
		return machine == aarch64 || machine == arm && !wide
	default:
		return true
	}
}
