package disk

import (
	"encoding/binary"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Execution is somebody's execve(2), which waits.
type Execution struct {
	PID int
	End func() // lets it go on
}

// HoldExecutions has each execution of a program wait, from now on until the test ends, by fanotify(7). Each call of next
// returns the next one.
func HoldExecutions(t testing.TB, program string) (next func() Execution) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "needs root: it holds executions up")
	}
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC)
	if err == nil {
		err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN_EXEC_PERM, unix.AT_FDCWD, program)
	}
	if err != nil {
		_ = unix.Close(fd)
		missing(t, "the kernel holds no executions up (CONFIG_FANOTIFY_ACCESS_PERMISSIONS): %v", err)
	}
	events := os.NewFile(uintptr(fd), "fanotify")
	t.Cleanup(func() { _ = events.Close() }) // which lets all go on
	return func() Execution {
		t.Helper()
		var e unix.FanotifyEventMetadata
		must(t, events.SetReadDeadline(time.Now().Add(time.Minute)))
		must(t, binary.Read(events, binary.NativeEndian, &e))
		return Execution{PID: int(e.Pid), End: func() {
			must(t, binary.Write(events, binary.NativeEndian, unix.FanotifyResponse{Fd: e.Fd, Response: unix.FAN_ALLOW}))
			must(t, unix.Close(int(e.Fd)))
		}}
	}
}
