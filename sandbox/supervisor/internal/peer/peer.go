package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// SocketName is the socket's in the supervisor's directory.
const SocketName = "supervisor.sock"

// Dial connects to the socket in dir. It goes through a descriptor of the
// directory, as a socket's path is limited to 107 bytes (unix(7)).
func Dial(ctx context.Context, dir string) (*net.UnixConn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), SocketName))
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		<-ctx.Done() // the dialer has looked at the clock before ctx's timer did, and whoever called asks ctx why this failed
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// Cred is who has connected, or who listens (SO_PEERCRED, unix(7)).
func Cred(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return nil, cerr
	}
	return cred, err
}

// Hung says whether a process has been killed and cannot end: each of its
// threads has ended, or waits in a system call, for a file system that hangs,
// after which it ends. Its sockets and locks are there meanwhile, and nobody at them.
func Hung(pid int) bool {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return false
	}
	waits := false
	for _, file := range tasks { // most often the first says that it lives
		data, err := os.ReadFile(file)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
			continue
		}
		switch state, exiting, killed := parse(data); {
		case err != nil:
			return false
		case state == 'Z' || state == 'X':
		case state == 'D' && killed, exiting && (state == 'D' || state == 'S'): // the latter closes what it had open
			waits = true
		default:
			return false
		}
	}
	return waits
}

// parse reads a thread's state, whether it is within its end (PF_EXITING), and
// whether SIGKILL waits for it, as it does for each thread of a process that is
// to end (proc_pid_stat(5)).
func parse(stat []byte) (state byte, exiting, killed bool) {
	const first, pfExiting = 3, 0x4 // the number of f[0] in the manual page; include/linux/sched.h
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) <= 31-first {
		return 0, false, false
	}
	flags, err := strconv.ParseUint(string(f[9-first]), 10, 64)
	pending, err2 := strconv.ParseUint(string(f[31-first]), 10, 64)
	if errors.Join(err, err2) != nil {
		return 0, false, false
	}
	return f[0][0], flags&pfExiting != 0, pending&(1<<(unix.SIGKILL-1)) != 0
}
