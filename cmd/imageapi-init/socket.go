package main

import (
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
)

// send sends a message. That the other side is gone is its business.
func send(socket int, message []byte) {
	for {
		if err := unix.Sendto(socket, message, unix.MSG_NOSIGNAL, nil); err != unix.EINTR {
			return
		}
	}
}

// receive waits for a message. The end of file is kind 0.
func receive(socket int, buf []byte) (proto.Kind, []string, error) {
	for {
		n, err := unix.Read(socket, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return 0, nil, err
		}
		return proto.Decode(buf[:n])
	}
}

// receiveFiles is receive for messages that may carry descriptors.
func receiveFiles(socket int, buf []byte) (proto.Kind, []string, []int, error) {
	const most = 8
	control := make([]byte, unix.CmsgSpace(4*most))
	n, oobn, _, _, err := unix.Recvmsg(socket, buf, control, unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, oobn, _, _, err = unix.Recvmsg(socket, buf, control, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil || n == 0 {
		return 0, nil, nil, err
	}
	var files []int
	messages, err := unix.ParseSocketControlMessage(control[:oobn])
	if err != nil {
		return 0, nil, nil, err
	}
	for _, m := range messages {
		if files, err = unix.ParseUnixRights(&m); err != nil {
			return 0, nil, nil, err
		}
	}
	kind, fields, err := proto.Decode(buf[:n])
	return kind, fields, files, err
}

// receiveConfig waits for the first message, which must be Run.
func receiveConfig(socket int) (proto.Config, error) {
	kind, fields, err := receive(socket, make([]byte, proto.MaxSize))
	if err != nil {
		return proto.Config{}, err
	}
	if kind != proto.Run {
		return proto.Config{}, unix.EPROTO
	}
	return proto.ParseConfig(fields)
}

// receiveRun is receiveConfig for a message that may carry a descriptor; without one it is -1.
func receiveRun(socket int) (config proto.Config, input int, err error) {
	kind, fields, files, err := receiveFiles(socket, make([]byte, proto.MaxSize))
	if err != nil {
		return config, -1, err
	}
	if kind != proto.Run || len(files) > 1 {
		return config, -1, unix.EPROTO
	}
	input = -1
	if len(files) == 1 {
		input = files[0]
	}
	config, err = proto.ParseConfig(fields)
	return config, input, err
}

// failed makes a Failure of a system call's error.
func failed(act, path string, err error) *proto.Failure {
	errno, ok := err.(unix.Errno)
	if !ok {
		return &proto.Failure{Reason: proto.Died, Act: act, Path: path, Detail: err.Error()}
	}
	return &proto.Failure{Reason: proto.Syscall, Act: act, Path: path, Errno: errno}
}
