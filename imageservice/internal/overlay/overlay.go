package overlay

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// MaxLayers is the kernel's bound (OVL_MAX_STACK).
const MaxLayers = 500

// Mounter remembers what the kernel can do. The zero value is ready.
type Mounter struct {
	legacy     atomic.Bool // no fsopen with lowerdir+
	noVolatile atomic.Bool // no volatile (before 5.10)
}

// Layers are absolute paths.
type Layers struct {
	Lower       []string // the uppermost first; at least one
	Upper, Work string   // empty for a read-only mount
}

// Mount mounts layers at the directory target.
func (m *Mounter) Mount(l Layers, target string) error {
	if !m.legacy.Load() {
		fd, err := m.detached(l)
		if err == nil {
			defer unix.Close(fd)
			if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				return fmt.Errorf("mounting overlay at %s: %w", target, err)
			}
			return nil
		}
		if !errors.Is(err, errLegacy) {
			return fmt.Errorf("mounting overlay at %s: %w", target, err)
		}
	}
	if err := m.mountLegacy(l, target); err != nil {
		return fmt.Errorf("mounting overlay at %s: %w", target, err)
	}
	return nil
}

// View returns a descriptor of the root of the merged lower layers, read-only,
// mounted nowhere. scratch is an empty directory for kernels that need one.
func (m *Mounter) View(lower []string, scratch string) (int, error) {
	l := Layers{Lower: lower}
	if !m.legacy.Load() {
		fd, err := m.detached(l)
		if err == nil || !errors.Is(err, errLegacy) {
			return fd, err
		}
	}
	if err := m.mountLegacy(l, scratch); err != nil {
		return -1, err
	}
	fd, err := unix.Open(scratch, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if uerr := unix.Unmount(scratch, unix.MNT_DETACH); err == nil && uerr != nil {
		unix.Close(fd)
		return -1, uerr
	}
	return fd, err
}

// Unmount detaches what is mounted at target. Nothing mounted, or no such
// directory, is nil.
func Unmount(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmounting %s: %w", target, err)
	}
	return nil
}

// errLegacy says that the kernel does not have the API that was tried.
var errLegacy = errors.New("no lowerdir+")

func (m *Mounter) detached(l Layers) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) {
		m.legacy.Store(true)
		return -1, errLegacy
	}
	if err != nil {
		return -1, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fs)
	for i, dir := range l.Lower {
		if err := unix.FsconfigSetString(fs, "lowerdir+", dir); err != nil {
			if i == 0 && errors.Is(err, unix.EINVAL) {
				m.legacy.Store(true)
				return -1, errLegacy
			}
			return -1, fmt.Errorf("lower layer %s: %w", dir, reason(fs, err))
		}
	}
	attr := unix.MOUNT_ATTR_RDONLY
	if l.Upper != "" {
		attr = 0
		for _, o := range [][2]string{{"upperdir", l.Upper}, {"workdir", l.Work}} {
			if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
				return -1, fmt.Errorf("%s %s: %w", o[0], o[1], reason(fs, err))
			}
		}
		// Containers never survive a power cut, so what they write need
		// not either.
		if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
			return -1, fmt.Errorf("volatile: %w", reason(fs, err))
		}
	}
	// Index and metacopy may be on by default in the kernel's configuration;
	// layers are moved and shared, which neither of them bears. The source is
	// what mount tables show.
	for _, o := range [][2]string{{"index", "off"}, {"metacopy", "off"}, {"source", "overlay"}} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("%s=%s: %w", o[0], o[1], reason(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("overlay of %d layers: %w", len(l.Lower), reason(fs, err))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", reason(fs, err))
	}
	return fd, nil
}

// reason adds what the kernel has to say about a failed call.
func reason(fs int, err error) error {
	buf := make([]byte, 1024)
	n, rerr := unix.Read(fs, buf)
	if rerr != nil || n <= 2 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.TrimSpace(string(buf[2:n])))
}

func (m *Mounter) mountLegacy(l Layers, target string) error {
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	open := func(dir string) (string, error) {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", fmt.Errorf("layer %s: %w", dir, err)
		}
		fds = append(fds, fd)
		return "/proc/self/fd/" + strconv.Itoa(fd), nil
	}
	var b strings.Builder
	b.WriteString("index=off,metacopy=off,lowerdir=")
	for i, dir := range l.Lower {
		name, err := open(dir)
		if err != nil {
			return err
		}
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(name)
	}
	flags := uintptr(unix.MS_RDONLY)
	if l.Upper != "" {
		flags = 0
		upper, err := open(l.Upper)
		if err != nil {
			return err
		}
		work, err := open(l.Work)
		if err != nil {
			return err
		}
		b.WriteString(",upperdir=" + upper + ",workdir=" + work)
	}
	if l.Upper != "" && !m.noVolatile.Load() {
		err := unix.Mount("overlay", target, "overlay", flags, b.String()+",volatile")
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
		// A kernel without it says just that; another cause fails again.
		if err := unix.Mount("overlay", target, "overlay", flags, b.String()); err != nil {
			return err
		}
		m.noVolatile.Store(true)
		return nil
	}
	return unix.Mount("overlay", target, "overlay", flags, b.String())
}
