package overlay

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// MaxLayers is the kernel's bound (OVL_MAX_STACK).
const MaxLayers = 500

// Mounter remembers what the kernel can do. The zero value is ready.
type Mounter struct {
	probe      sync.Once
	legacy     atomic.Bool // no fsopen with lowerdir+
	noVolatile atomic.Bool // no volatile (before 5.10)
	attach     atomic.Bool // idmapped layers must be mounted somewhere (before 6.15)
}

// Layers are absolute paths.
type Layers struct {
	Lower       []string // the uppermost first; at least one, or two without Upper
	Upper, Work string   // empty for a read-only mount

	Label string // SELinux label of all files, "" = of each its own

	// Map, unless nil, is whom the files of Lower seem to belong to. Upper and
	// what is written there have the owners of the host. Scratch is then an
	// empty directory for kernels that need one.
	Map     *IDMap
	Scratch string
}

// Mount mounts layers at the directory target. No mount or unmount beneath it
// is propagated to anywhere. The error is ErrNoIDMap when the kernel, or the
// file system of a layer, cannot do what Map asks for.
func (m *Mounter) Mount(l Layers, target string) error {
	err := m.mount(l, target)
	if err == nil {
		err = unix.Mount("", target, "", unix.MS_PRIVATE, "")
		if err != nil {
			err = errors.Join(err, Unmount(target))
		}
	}
	if err != nil {
		return fmt.Errorf("mounting overlay at %s: %w", target, err)
	}
	return nil
}

func (m *Mounter) mount(l Layers, target string) error {
	if l.Map == nil {
		return m.stack(l, target, nil)
	}
	userns, err := l.Map.userns()
	if err != nil {
		return err
	}
	defer userns.Close()
	attach := m.attach.Load()
	err = m.mapped(l, target, userns, attach)
	if !attach && errors.Is(err, unix.EINVAL) {
		if err := l.clearWork(); err != nil {
			return err
		}
		if err = m.mapped(l, target, userns, true); err == nil {
			m.attach.Store(true)
		}
	}
	if errors.Is(err, unix.EINVAL) {
		if err := l.clearWork(); err != nil {
			return err
		}
		// 5.12 to 5.18: overlayfs takes no such layer.
		return fmt.Errorf("%w: %w", ErrNoIDMap, err)
	}
	return err
}

// View returns a descriptor of the root of the merged lower layers, read-only,
// mounted nowhere. scratch is an empty directory for kernels that need one.
func (m *Mounter) View(lower []string, scratch string) (int, error) {
	l := Layers{Lower: lower}
	if err := l.check(); err != nil {
		return -1, err
	}
	if m.hasAPI() {
		fd, err := m.detached(l, nil)
		if err == nil || !errors.Is(err, errLegacy) {
			return fd, err
		}
	}
	if err := m.mountLegacy(l, scratch, nil); err != nil {
		return -1, err
	}
	fd, err := unix.Open(scratch, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if uerr := unix.Unmount(scratch, unix.MNT_DETACH); err == nil && uerr != nil {
		unix.Close(fd)
		return -1, uerr
	}
	return fd, err
}

// Unmount detaches all that is mounted at target, one on the other. Nothing
// mounted, or no such directory, is nil.
func Unmount(target string) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmounting %s: %w", target, err)
		}
	}
}

// clearWork makes the work directory fit for another try: a mount that fails
// because of its lower layers has left the mark of a volatile one there, which
// no later mount takes (before Linux 6.5).
func (l Layers) clearWork() error {
	if l.Work == "" {
		return nil
	}
	return os.RemoveAll(l.Work + "/work")
}

func (l Layers) check() error {
	if len(l.Lower) > MaxLayers {
		return fmt.Errorf("%d layers, the kernel takes %d: %w", len(l.Lower), MaxLayers, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// stack mounts layers at target. Instead of Lower, fds are taken if there are any.
func (m *Mounter) stack(l Layers, target string, fds []int) error {
	if err := l.check(); err != nil {
		return err
	}
	if m.hasAPI() {
		fd, err := m.detached(l, fds)
		if err == nil {
			defer unix.Close(fd)
			return unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
		}
		if !errors.Is(err, errLegacy) {
			return err
		}
	}
	return m.mountLegacy(l, target, fds)
}

// hasAPI says whether the mount API is to be tried. Before 6.5 overlayfs has fsopen only in appearance: any option is
// taken, even one that there is not, and all fail together when the mount is made.
func (m *Mounter) hasAPI() bool {
	m.probe.Do(func() {
		fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
		if err != nil {
			return // detached meets the same error, and names it
		}
		defer unix.Close(fs)
		if unix.FsconfigSetFlag(fs, "no_such_option") == nil {
			m.legacy.Store(true)
		}
	})
	return !m.legacy.Load()
}

// errLegacy says that the kernel does not have the API that was tried.
var errLegacy = errors.New("no lowerdir+")

// maxOption is how long the kernel lets one option be, with its final zero.
const maxOption = 256

func fdName(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func (m *Mounter) detached(l Layers, fds []int) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) {
		m.legacy.Store(true)
		return -1, errLegacy
	}
	if err != nil {
		return -1, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fs)
	var short opened
	defer short.close()
	set := func(option, dir string) (err error) {
		if len(dir) >= maxOption {
			if dir, err = short.open(dir); err != nil {
				return err
			}
		}
		return unix.FsconfigSetString(fs, option, dir)
	}
	for i, dir := range l.Lower {
		if fds != nil {
			dir = fdName(fds[i])
		}
		if err := set("lowerdir+", dir); err != nil {
			if i == 0 && errors.Is(err, unix.EINVAL) {
				m.legacy.Store(true)
				return -1, errLegacy
			}
			return -1, fmt.Errorf("lower layer %s: %w", l.Lower[i], reason(fs, err))
		}
	}
	attr := unix.MOUNT_ATTR_RDONLY
	if l.Upper != "" {
		attr = 0
		for _, o := range [][2]string{{"upperdir", l.Upper}, {"workdir", l.Work}} {
			if err := set(o[0], o[1]); err != nil {
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
	options := [][2]string{{"index", "off"}, {"metacopy", "off"}, {"source", "overlay"}}
	if l.Label != "" {
		options = append(options, [2]string{"context", l.Label})
	}
	for _, o := range options {
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

// opened are descriptors of directories, whose names are short.
type opened []int

func (o *opened) open(dir string) (string, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("layer %s: %w", dir, err)
	}
	*o = append(*o, fd)
	return fdName(fd), nil
}

func (o *opened) close() {
	for _, fd := range *o {
		unix.Close(fd)
	}
}

func (m *Mounter) mountLegacy(l Layers, target string, fds []int) error {
	var o opened
	defer o.close()
	var b strings.Builder
	b.WriteString("index=off,metacopy=off,lowerdir=")
	for i, dir := range l.Lower {
		if i > 0 {
			b.WriteByte(':')
		}
		if fds != nil {
			b.WriteString(fdName(fds[i]))
			continue
		}
		name, err := o.open(dir)
		if err != nil {
			return err
		}
		b.WriteString(name)
	}
	if l.Label != "" {
		b.WriteString(`,context="` + l.Label + `"`) // quoted, for a level has commas
	}
	flags := uintptr(unix.MS_RDONLY)
	if l.Upper != "" {
		flags = 0
		upper, err := o.open(l.Upper)
		if err != nil {
			return err
		}
		work, err := o.open(l.Work)
		if err != nil {
			return err
		}
		b.WriteString(",upperdir=" + upper + ",workdir=" + work)
	}
	// mount(2) would cut the options off without a word.
	if b.Len()+len(",volatile") >= os.Getpagesize() {
		return fmt.Errorf("%d layers do not fit into the options of mount(2), it takes Linux 6.7: %w", len(l.Lower), errdefs.ErrFailedPrecondition)
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
