package supervisor

import (
	"strings"

	"golang.org/x/sys/unix"
)

// heed reads what comes in at the socket of sd_notify(3) and calls up, once, when the process pid is ready. It returns when the
// socket is shut down. It goes on reading until then, since who writes waits while the socket is full.
func heed(socket, pid int, up func()) {
	said := false
	buf, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for {
		n, oobn, _, _, err := unix.Recvmsg(socket, buf, control, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || oobn == 0 { // shut down: every message has its sender with it
			return
		}
		if !said && sender(control[:oobn]) == pid && isReady(string(buf[:n])) {
			said = true
			up()
		}
	}
}

// sender returns the process, as numbered here, that sent a message with this control part.
func sender(control []byte) int {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		if who, err := unix.ParseUnixCredentials(&m); err == nil {
			return int(who.Pid)
		}
	}
	return 0
}

func isReady(message string) bool {
	for line := range strings.SplitSeq(message, "\n") {
		if line == "READY=1" {
			return true
		}
	}
	return false
}
