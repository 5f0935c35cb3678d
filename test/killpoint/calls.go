package killpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// kind is a system call that may be a change.
type kind struct {
	name string
	// describe returns the call as a person wants to see it, "" where it changes nothing.
	describe func(t *tracer, tid int, args [6]uint64) string
}

// calls are the changes, by number.
var calls = map[uint64]kind{}

func add(nr uint64, name string, describe func(k string, t *tracer, tid int, args [6]uint64) string) {
	calls[nr] = kind{name, func(t *tracer, tid int, args [6]uint64) string { return describe(name, t, tid, args) }}
}

func init() {
	for nr, name := range map[uint64]string{ // descriptor of a directory and path in the first two arguments
		unix.SYS_MKDIRAT: "mkdirat", unix.SYS_MKNODAT: "mknodat", unix.SYS_UNLINKAT: "unlinkat",
		unix.SYS_RENAMEAT2: "renameat2", unix.SYS_RENAMEAT: "renameat", unix.SYS_LINKAT: "linkat", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FCHOWNAT: "fchownat",
		unix.SYS_OPEN_TREE: "open_tree", unix.SYS_MOUNT_SETATTR: "mount_setattr", unix.SYS_OPENAT2: "openat2",
	} {
		add(nr, name, path(1))
	}
	add(unix.SYS_MOUNT, "mount", path(1))
	for nr, name := range map[uint64]string{
		unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_UMOUNT2: "umount2", unix.SYS_TRUNCATE: "truncate", unix.SYS_SETXATTR: "setxattr", unix.SYS_LSETXATTR: "lsetxattr",
	} {
		add(nr, name, path(0))
	}
	add(unix.SYS_MOVE_MOUNT, "move_mount", path(3))
	add(unix.SYS_OPENAT, "openat", openat)
	for nr, name := range map[uint64]string{
		unix.SYS_WRITE: "write", unix.SYS_WRITEV: "writev", unix.SYS_PWRITE64: "pwrite64", unix.SYS_PWRITEV: "pwritev", unix.SYS_PWRITEV2: "pwritev2",
		unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FALLOCATE: "fallocate", unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync", unix.SYS_SYNCFS: "syncfs",
		unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHOWN: "fchown", unix.SYS_FSETXATTR: "fsetxattr",
	} {
		add(nr, name, descriptor)
	}
	for nr, name := range map[uint64]string{unix.SYS_SENDTO: "sendto", unix.SYS_SENDMSG: "sendmsg", unix.SYS_SENDMMSG: "sendmmsg"} {
		add(nr, name, message)
	}
	for nr, name := range map[uint64]string{
		unix.SYS_SETNS: "setns", unix.SYS_UNSHARE: "unshare", unix.SYS_SETHOSTNAME: "sethostname", unix.SYS_PIVOT_ROOT: "pivot_root",
		unix.SYS_FSCONFIG: "fsconfig", unix.SYS_FSMOUNT: "fsmount", unix.SYS_KILL: "kill", unix.SYS_PIDFD_SEND_SIGNAL: "pidfd_send_signal",
	} {
		add(nr, name, always)
	}
	add(unix.SYS_CLONE, "clone", clone)
	add(unix.SYS_CLONE3, "clone3", clone)
}

func always(name string, _ *tracer, _ int, _ [6]uint64) string { return name }

// path describes a call by one of its arguments.
func path(arg int) func(string, *tracer, int, [6]uint64) string {
	return func(name string, t *tracer, _ int, args [6]uint64) string { return name + " " + t.text(args[arg]) }
}

// openat changes something when it may make or empty a file.
func openat(name string, t *tracer, _ int, args [6]uint64) string {
	if args[2]&(unix.O_CREAT|unix.O_TRUNC) == 0 || args[2]&unix.O_TMPFILE == unix.O_TMPFILE {
		return ""
	}
	return name + " " + t.text(args[1])
}

// descriptor describes a call by its file, which must have a path or be a pipe, and none of the standard streams: logs.
func descriptor(name string, t *tracer, tid int, args [6]uint64) string {
	file := t.file(args[0])
	if strings.HasPrefix(file, "socket:") {
		return message(name, t, tid, args)
	}
	if args[0] <= 2 || !strings.HasPrefix(file, "/") && !strings.HasPrefix(file, "pipe:") || strings.HasPrefix(file, "/dev/") {
		return ""
	}
	return name + " " + file
}

// message describes one to the kernel (netlink), or to a program that listens at a path. A client that is answered has none.
func message(name string, t *tracer, _ int, args [6]uint64) string {
	fd, err := unix.PidfdGetfd(t.pidfd, int(args[0]), 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	switch domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); {
	case err != nil:
	case domain == unix.AF_NETLINK:
		protocol, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL) // for a person only
		return fmt.Sprintf("%s netlink %d", name, protocol)
	case domain == unix.AF_UNIX:
		if peer, err := unix.Getpeername(fd); err == nil {
			if at, ok := peer.(*unix.SockaddrUnix); ok && strings.Trim(at.Name, "@") != "" {
				return name + " socket:" + filepath.Base(at.Name)
			}
		}
	}
	return ""
}

// clone changes something when it starts a process: threads are the process's own.
func clone(name string, t *tracer, _ int, args [6]uint64) string {
	flags := args[0]
	if name == "clone3" {
		var b [8]byte
		if t.read(args[0], b[:]) < len(b) {
			return name
		}
		flags = 0
		for i, v := range b {
			flags |= uint64(v) << (8 * i)
		}
	}
	if flags&unix.CLONE_THREAD != 0 {
		return ""
	}
	return name
}

func (t *tracer) file(fd uint64) string {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", t.pid, fd))
	if err != nil {
		return ""
	}
	return link
}

// text is a string in the process's memory.
func (t *tracer) text(addr uint64) string {
	b := make([]byte, 512)
	s, _, _ := strings.Cut(string(b[:t.read(addr, b)]), "\x00")
	return fmt.Sprintf("%q", s)
}

// read returns how much it could: less at the end of a mapping.
func (t *tracer) read(addr uint64, b []byte) int {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", t.pid))
	if err != nil {
		return 0
	}
	defer mem.Close()
	n, _ := mem.ReadAt(b, int64(addr))
	return max(n, 0)
}
