package overlay

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNoIDMap says that the kernel (before 5.19), or the file system that the
// layers are on, has no idmapped layers.
var ErrNoIDMap = errors.New("no idmapped layers")

// IDMap is the mapping of a user namespace: who on the host an owner that the
// image names is.
type IDMap struct{ UIDs, GIDs []IDRange }

// IDRange maps Length ids from Container on to those from Host on.
type IDRange struct{ Container, Host, Length uint32 }

// overflow is whom the kernel shows where an id is not mapped.
const overflow = 65534

// Host is who on the host the owner of an image's file is.
func (m *IDMap) Host(uid, gid uint32) (hostUID, hostGID uint32) {
	return hostID(m.UIDs, uid), hostID(m.GIDs, gid)
}

func hostID(ranges []IDRange, id uint32) uint32 {
	for _, r := range ranges {
		if id >= r.Container && id-r.Container < r.Length {
			return r.Host + (id - r.Container)
		}
	}
	return overflow
}

// maxRanges is the kernel's bound (UID_GID_MAP_MAX_EXTENTS).
const maxRanges = 340

// Check refuses a mapping that no user namespace can have, with words that
// name the range.
func (m *IDMap) Check() error {
	for _, side := range []struct {
		what   string
		ranges []IDRange
	}{{"uid", m.UIDs}, {"gid", m.GIDs}} {
		if n := len(side.ranges); n == 0 || n > maxRanges {
			return fmt.Errorf("%d ranges of %s mappings, there must be 1 to %d", n, side.what, maxRanges)
		}
		for i, r := range side.ranges {
			const end = 1<<32 - 1 // the last id means "none"
			if r.Length == 0 || uint64(r.Container)+uint64(r.Length) > end || uint64(r.Host)+uint64(r.Length) > end {
				return fmt.Errorf("%s mapping %d: %d ids from %d on to %d are no range", side.what, i, r.Length, r.Container, r.Host)
			}
			for _, o := range side.ranges[:i] {
				if overlap(r.Container, o.Container, r, o) || overlap(r.Host, o.Host, r, o) {
					return fmt.Errorf("%s mapping %d overlaps an earlier one", side.what, i)
				}
			}
		}
	}
	return nil
}

func overlap(a, b uint32, r, o IDRange) bool {
	return uint64(a) < uint64(b)+uint64(o.Length) && uint64(b) < uint64(a)+uint64(r.Length)
}

// userns opens a user namespace with the mapping. Only a process makes one: it
// is stopped before it executes anything, and killed.
func (m *IDMap) userns() (*os.File, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	convert := func(ranges []IDRange) (out []syscall.SysProcIDMap) {
		for _, r := range ranges {
			out = append(out, syscall.SysProcIDMap{ContainerID: int(r.Container), HostID: int(r.Host), Size: int(r.Length)})
		}
		return out
	}
	runtime.LockOSThread() // who traces a process is a thread
	defer runtime.UnlockOSThread()
	p, err := os.StartProcess("/proc/self/exe", []string{"userns"}, &os.ProcAttr{
		Dir: "/", Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: convert(m.UIDs), GidMappings: convert(m.GIDs),
			Ptrace: true, Pdeathsig: syscall.SIGKILL,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("making a user namespace: %w", err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", p.Pid))
	_ = p.Kill()
	_, _ = p.Wait()
	if err != nil {
		return nil, fmt.Errorf("opening a user namespace: %w", err)
	}
	return f, nil
}

// mapped mounts l with its lower layers mapped. Before Linux 6.15 overlayfs
// takes no layer that is mounted nowhere: attach mounts them at Scratch, one
// on the other, until the overlay has its own hold on them.
func (m *Mounter) mapped(l Layers, target string, userns *os.File, attach bool) (err error) {
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	if attach {
		defer func() { err = errors.Join(err, Unmount(l.Scratch)) }()
	}
	for _, dir := range l.Lower {
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("%w: open_tree: %w", ErrNoIDMap, err)
		}
		if err != nil {
			return fmt.Errorf("layer %s: %w", dir, err)
		}
		fds = append(fds, fd)
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd()), Propagation: unix.MS_PRIVATE}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
				return fmt.Errorf("%w: layer %s: %v", ErrNoIDMap, dir, err)
			}
			return fmt.Errorf("layer %s: mapping owners: %w", dir, err)
		}
		if !attach {
			continue
		}
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, l.Scratch, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("layer %s: mounting it at %s: %w", dir, l.Scratch, err)
		}
	}
	return m.stack(l, target, fds)
}
