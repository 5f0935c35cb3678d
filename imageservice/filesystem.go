package imageservice

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Filesystem is the file system that images and writable layers lie on.
type Filesystem struct {
	Device     string // as it was mounted: /dev/vda1; its directory where that cannot be told
	Bytes      uint64 // its size
	Inodes     uint64
	FreeInodes uint64
}

// Filesystem tells of the file system as it is now.
func (s *Service) Filesystem() (Filesystem, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.cfg.Root, &st); err != nil {
		return Filesystem{}, fmt.Errorf("looking at the file system of %s: %w", s.cfg.Root, err)
	}
	return Filesystem{Device: deviceOf(s.cfg.Root), Bytes: st.Blocks * uint64(st.Frsize), Inodes: st.Files, FreeInodes: st.Ffree}, nil
}

// deviceOf is the device that a directory lies on.
func deviceOf(dir string) string {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return dir
	}
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return dir
	}
	defer f.Close()
	number := fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor)
	for s := bufio.NewScanner(f); s.Scan(); {
		// proc_pid_mountinfo(5): id parent major:minor root target options [tag...] - type source ...
		before, after, _ := strings.Cut(s.Text(), " - ")
		fields, mount := strings.Fields(before), strings.Fields(after)
		if len(fields) > 2 && fields[2] == number && len(mount) > 1 {
			return mount[1]
		}
	}
	return dir
}
