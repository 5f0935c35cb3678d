package server

import (
	"os"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// endSignals end the server.
var endSignals = [...]os.Signal{unix.SIGTERM, unix.SIGINT}

// signals keeps those that end the server from being lost in an execve(2): what
// this program has been told of, and has not acted upon, the next one does not know.
//
// They are not blocked instead, which pending ones would survive: Go's other
// threads take them all the same, and children, containers among them, would inherit it.
type signals struct {
	seen chan os.Signal
	left []func() // undo leave
}

// noteSignals notes from now on that one has come.
func noteSignals() *signals {
	s := &signals{seen: make(chan os.Signal, 1)}
	signal.Notify(s.seen, endSignals[:]...)
	return s
}

// leave has the kernel end this process at the next one, which changes nothing
// but at a standstill; the program executed then begins like that too. It is false if one has come before.
func (s *signals) leave() bool {
	for _, sig := range endSignals {
		var none, handler [4]uint64 // struct sigaction of rt_sigaction(2); zero is SIG_DFL
		n := sig.(syscall.Signal)
		if setAction(n, &none, &handler) == 0 {
			s.left = append(s.left, func() { setAction(n, &handler, &none) })
		}
	}
	signal.Stop(s.seen) // waits until it has those that were under way
	return len(s.seen) == 0
}

// stop has the program handle them again.
func (s *signals) stop() {
	signal.Stop(s.seen)
	for _, undo := range s.left {
		undo()
	}
}

// setAction does what package signal has no means for: of SIGTERM it stays the handler.
func setAction(sig syscall.Signal, to, was *[4]uint64) unix.Errno {
	const maskSize = 8
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(to)), uintptr(unsafe.Pointer(was)), maskSize, 0, 0)
	return errno
}
