package act

import (
	"runtime"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// sgIO is struct sg_io_hdr of scsi/sg.h.
type sgIO struct {
	interfaceID    int32
	direction      int32
	commandLength  uint8
	senseMax       uint8
	_              uint16 // of lists
	length         uint32
	data           unsafe.Pointer
	command        unsafe.Pointer
	sense          unsafe.Pointer
	timeout        uint32 // milliseconds
	_              uint32 // flags
	_              int32
	_              unsafe.Pointer
	status         uint8
	_              uint8
	_              uint8
	senseWritten   uint8
	hostStatus     uint16
	driverStatus   uint16
	residual       int32
	duration, info uint32
}

// ask sends SCSI commands that read to a device. After its path come pairs of a command and the length that it reads.
func ask(m wire.Message) (int, *wire.Failure) {
	if len(m.Fields) < 3 {
		return malformed()
	}
	device, err := unix.Open(m.Fields[0], unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return refused("open", err)
	}
	var all []byte
	for pair := range slices.Chunk(m.Fields[1:], 2) {
		command, err := wire.ParseHex(pair[0])
		length, wrong := strconv.ParseUint(pair[len(pair)-1], 10, 16)
		if err != nil || wrong != nil || len(command) < 6 || len(command) > 16 || length == 0 {
			return malformed()
		}
		answer, err := askOne(device, command, int(length))
		if err != nil {
			return refused("SG_IO", err)
		}
		all = append(all, answer...)
	}
	return memory(all)
}

// askOne returns what the device answers, as wire.Ask has it.
func askOne(device int, command []byte, length int) ([]byte, error) {
	const request, fromDevice, timeout = 0x2285, -3, 8000 // SG_IO, SG_DXFER_FROM_DEV
	answer, sense := make([]byte, wire.AskHead+length), make([]byte, 32)
	io := sgIO{
		interfaceID: 'S', direction: fromDevice, commandLength: uint8(len(command)), senseMax: uint8(len(sense)), length: uint32(length),
		data: unsafe.Pointer(&answer[wire.AskHead]), command: unsafe.Pointer(&command[0]), sense: unsafe.Pointer(&sense[0]), timeout: timeout,
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(device), request, uintptr(unsafe.Pointer(&io)))
	runtime.KeepAlive(command)
	switch {
	case errno != 0:
		return nil, errno
	case io.hostStatus != 0:
		return nil, unix.EIO
	}
	answer[0] = io.status
	const fixed, descriptor = 0x70, 0x72
	switch sense[0] & 0x7e {
	case fixed:
		answer[1], answer[2], answer[3] = sense[2]&0xf, sense[12], sense[13]
	case descriptor:
		answer[1], answer[2], answer[3] = sense[1]&0xf, sense[2], sense[3]
	}
	return answer, nil
}
