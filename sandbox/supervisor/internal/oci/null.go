package oci

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// nullDevices makes null devices on a file system of its own, which is mounted nowhere.
//
// The host's /dev/null must not be a standard file of an OCI runtime: crun
// (seen in 1.8.1) gives those to the user of the process, who could then close
// /dev/null to the host. A runtime takes any null device for /dev/null, by its
// number, and gives the container's own to the first process instead.
type nullDevices struct {
	mount func() (int, error) // once; the descriptor is never closed
	made  atomic.Uint64
}

func newNullDevices() *nullDevices {
	return &nullDevices{mount: sync.OnceValues(func() (int, error) {
		fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
		if err != nil {
			return -1, err
		}
		defer unix.Close(fs)
		if err := unix.FsconfigCreate(fs); err != nil {
			return -1, err
		}
		return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	})}
}

// Null opens a null device, for reading and writing, that nobody else has.
func (r *Runner) Null() (*os.File, error) {
	dir, err := r.null.mount()
	if err != nil {
		return nil, fmt.Errorf("making a file system for null devices: %w", err)
	}
	name := strconv.FormatUint(r.null.made.Add(1), 10)
	if err := unix.Mknodat(dir, name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return nil, fmt.Errorf("making a null device: %w", err)
	}
	defer func() { _ = unix.Unlinkat(dir, name, 0) }()
	fd, err := unix.Openat(dir, name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a null device: %w", err)
	}
	f := os.NewFile(uintptr(fd), "null")
	if err := unix.Fchmod(fd, 0o666); err != nil { // whatever the umask: any user may open /dev/stdin
		_ = f.Close()
		return nil, fmt.Errorf("opening a null device: %w", err)
	}
	return f, nil
}
