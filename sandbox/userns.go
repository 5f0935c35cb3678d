package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/hostpath"
)

// IDMap is the mapping of a pod's user namespace: the user and group ids from
// 0 on in it are those from UID and GID on on the host, Length of each. The
// zero value is the host's user namespace.
type IDMap struct{ UID, GID, Length uint32 }

// makeMappedNamespaces makes the pod's namespaces together with the user
// namespace that owns them. A thread cannot make a user namespace, as other
// threads would be outside of it (unshare(2)), so they are those of a process:
// the pod init, which does nothing, until they are pinned and set up. It runs
// on a thread that ends afterwards, and the process dies with that thread.
func makeMappedNamespaces(dir, init string, cfg PodConfig, proc int) (err error) {
	flags, kinds := cfg.Namespaces.flags()
	pidfd, ids := -1, func(host uint32) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(host), Size: int(cfg.IDs.Length)}}
	}
	p, err := os.StartProcess(init, []string{"init"}, &os.ProcAttr{
		Dir: "/", Env: []string{},
		Sys: &syscall.SysProcAttr{
			// The kernel makes the user namespace first, and the others owned by it (clone(2)).
			Cloneflags: uintptr(flags), UidMappings: ids(cfg.IDs.UID), GidMappings: ids(cfg.IDs.GID),
			GidMappingsEnableSetgroups: true, // processes of containers set their groups
			Pdeathsig:                  syscall.SIGKILL, PidFD: &pidfd,
		},
	})
	if err != nil {
		return fmt.Errorf("making the user namespace, and in it %s: %w", strings.Join(kinds[1:], ", "), err)
	}
	defer func() {
		_ = p.Kill()
		_, _ = p.Wait()
		_ = unix.Close(pidfd)
	}()
	for _, kind := range kinds {
		if err := pin(fmt.Sprintf("/proc/%d/ns/%s", p.Pid, kind), filepath.Join(dir, kind)); err != nil {
			return err
		}
	}
	// We stay in the host's user namespace, which has all rights over the pod's.
	if err := unix.Setns(pidfd, flags&^unix.CLONE_NEWUSER); err != nil {
		return fmt.Errorf("entering the pod's namespaces: %w", err)
	}
	if cfg.Label != "" && cfg.Namespaces.IPC {
		if err := ownQueues(cfg.IDs); err != nil {
			return fmt.Errorf("giving /dev/mqueue to the pod's root: %w", err)
		}
	}
	return setUp(cfg, proc)
}

// ownQueues gives the root of this IPC namespace's message queues to the pod's
// root. It is the host's, whose namespace it was made from, and the OCI
// runtime, which gives it the pod's SELinux label, may so only as its owner.
func ownQueues(ids IDMap) error {
	fs, err := unix.Fsopen("mqueue", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("fsconfig: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount: %w", err)
	}
	defer unix.Close(root)
	return unix.Fchownat(root, "", int(ids.UID), int(ids.GID), unix.AT_EMPTY_PATH)
}

// asMappedRoot runs f as the root of the pod's user namespace, to whom alone
// newer kernels let the sysctls of its IPC namespace be written.
func asMappedRoot(ids IDMap, f func() error) error {
	// Of this thread alone, unlike syscall.Setresuid.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(ids.UID), ^uintptr(0)); errno != 0 {
		return fmt.Errorf("becoming user %d: %w", ids.UID, errno)
	}
	err := f()
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 0, ^uintptr(0)); errno != 0 {
		return errors.Join(err, fmt.Errorf("becoming root again: %w", errno))
	}
	return err
}

// LetPass opens the run directory so far that users of pods can pass it, though
// not list it: the first process of a container in a user namespace looks for
// its root file system as such a user. All that lies below is closed to others
// by itself. The parents of the run directory must let pass already.
func (h *Host) LetPass() error {
	if err := os.Chmod(h.runDir, 0o711); err != nil {
		return fmt.Errorf("opening the run directory to users of pods: %w", err)
	}
	for dir := filepath.Dir(h.runDir); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode()&0o001 == 0 {
			return fmt.Errorf("pods with a user namespace need to pass %s on the way to the run directory, chmod o+x it or choose another --run: %w", dir, errdefs.ErrFailedPrecondition)
		}
		if dir == "/" {
			return nil
		}
	}
}

// UserNS is a pod's user namespace, opened by [Host.OpenUserNS] to ask what can be mapped to it.
type UserNS struct{ file *os.File }

// OpenUserNS opens the user namespace of a pod that has one of its own. Close it.
func (h *Host) OpenUserNS(podID string) (*UserNS, error) {
	f, err := os.Open(h.PodPaths(podID, Namespaces{User: true}).User)
	if err != nil {
		return nil, fmt.Errorf("opening the pod's user namespace: %w", err)
	}
	return &UserNS{f}, nil
}

// Close closes it; nil is closed already.
func (u *UserNS) Close() error {
	if u == nil {
		return nil
	}
	return u.file.Close()
}

// CanMap fails if what is mounted at a path cannot be mounted with owners mapped
// to the user namespace: the kernel is older than 5.12, or its file system
// cannot do it. Such an error is errdefs.ErrFailedPrecondition.
func (u *UserNS) CanMap(path *hostpath.Path) error {
	fd, err := unix.OpenTree(path.Fd(), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		defer unix.Close(fd)
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(u.file.Fd())})
	}
	if err != nil {
		return fmt.Errorf("%s cannot be mounted with mapped owners, which takes Linux 5.12 and a file system that can do it: %w: %w", path.Name, err, errdefs.ErrFailedPrecondition)
	}
	return nil
}
