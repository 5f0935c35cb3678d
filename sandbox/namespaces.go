package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Namespaces says which namespaces a pod has of its own; the others are the host's.
type Namespaces struct {
	User          bool // it then owns the others
	Net, IPC, UTS bool
}

func (n Namespaces) flags() (flags int, kinds []string) {
	for _, k := range []struct {
		own  bool
		name string
		flag int
	}{{n.User, "user", unix.CLONE_NEWUSER}, {n.Net, "net", unix.CLONE_NEWNET}, {n.IPC, "ipc", unix.CLONE_NEWIPC}, {n.UTS, "uts", unix.CLONE_NEWUTS}} {
		if k.own {
			flags |= k.flag
			kinds = append(kinds, k.name)
		}
	}
	return flags, kinds
}

// unpinned is a thread in new namespaces, which end with it unless they are
// pinned by then: a crash leaves nothing. Whoever makes one gives it one job,
// nil to let the namespaces go, and waits for its end.
type unpinned struct {
	job chan func(proc int) error // proc is a procfs for it
	end chan error
}

// unshare begins to make namespaces. A user namespace and those that it owns
// are left to the job.
func unshare(n Namespaces) unpinned {
	u := unpinned{job: make(chan func(int) error, 1), end: make(chan error, 1)}
	go onSpareThread(func() {
		var err error
		if flags, kinds := n.flags(); flags != 0 && !n.User {
			if err = unix.Unshare(flags); err != nil {
				err = fmt.Errorf("making the namespaces %s: %w", strings.Join(kinds, ", "), err)
			}
		}
		proc, noProcfs := openProcfs()
		if noProcfs == nil {
			defer unix.Close(proc) // behind the end, which nobody has to wait for
		}
		if err == nil {
			err = noProcfs
		}
		if job := <-u.job; err == nil && job != nil {
			err = job(proc)
		}
		u.end <- err
	})
	return u
}

// openProcfs makes a procfs that is mounted nowhere: the kernel keeps the names
// below /proc/sys/net of all namespaces in one list per name and mounted
// procfs, so that in /proc the first look of a namespace takes the longer the
// more pods there are. Where it cannot be made (before Linux 5.2) /proc serves.
func openProcfs() (int, error) {
	if fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC); err == nil {
		defer unix.Close(fs)
		if unix.FsconfigCreate(fs) == nil {
			if dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0); err == nil {
				return dir, nil
			}
		}
	}
	dir, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening /proc for a pod's sysctls: %w", err)
	}
	return dir, nil
}

// onSpareThread runs f on a thread that ends with it, so that f may change the
// thread's namespaces. The main thread cannot end, and /proc/self is its view:
// if the scheduler put us there, it is held while another thread does the work.
func onSpareThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		f()
		return // still locked: the runtime ends the thread (runtime.LockOSThread)
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

// pinNamespaces pins each of the namespaces that the thread is in as dir/<kind>
// and sets them up.
func pinNamespaces(dir string, cfg PodConfig, proc int) error {
	_, kinds := cfg.Namespaces.flags()
	for _, kind := range kinds {
		if err := pin("/proc/thread-self/ns/"+kind, filepath.Join(dir, kind)); err != nil {
			return err
		}
	}
	return setUp(cfg, proc)
}

// setUp gives the namespaces that the thread is in what the pod asks for.
func setUp(cfg PodConfig, proc int) error {
	if cfg.Namespaces.UTS {
		if err := unix.Sethostname([]byte(cfg.Hostname)); err != nil {
			return fmt.Errorf("setting hostname %q: %w", cfg.Hostname, err)
		}
	}
	return setSysctls(proc, cfg.Sysctls, cfg.IDs)
}

// setSysctls writes to sys of a procfs, which shows the calling thread's namespaces
// for the net, kernel/shm*, msg*, sem and fs/mqueue trees. That every key is
// of a namespace that the pod owns is the caller's duty: any other would
// change the host.
func setSysctls(proc int, sysctls map[string]string, ids IDMap) error {
	keys := make([]string, 0, len(sysctls))
	for k := range sysctls {
		keys = append(keys, k)
	}
	slices.Sort(keys) // the same error every time
	for _, k := range keys {
		path := filepath.Join("sys", k)
		err := writeSysctl(proc, path, sysctls[k])
		if ids != (IDMap{}) && errors.Is(err, fs.ErrPermission) {
			err = asMappedRoot(ids, func() error { return writeSysctl(proc, path, sysctls[k]) })
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return fmt.Errorf("setting sysctl %q to %q: %w", k, sysctls[k], err)
		}
	}
	return nil
}

// writeSysctl writes without package os, which would have the poller watch the
// file: that costs more than the writing.
func writeSysctl(proc int, path, value string) error {
	fd, err := unix.Openat(proc, path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd) // procfs writes take effect in write(2)
	for {
		if _, err = unix.Write(fd, []byte(value)); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// pin bind-mounts a namespace file, which keeps the namespace alive.
func pin(ns, target string) error {
	fd, err := unix.Open(target, unix.O_CREAT|unix.O_EXCL|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o400)
	if err != nil {
		return fmt.Errorf("pinning namespace: %w", &os.PathError{Op: "create", Path: target, Err: err})
	}
	_ = unix.Close(fd)
	if err := unix.Mount(ns, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pinning namespace %s at %s: %w", ns, target, err)
	}
	return nil
}

// unmount detaches whatever is mounted at path; nothing mounted, or no path, is success.
func unmount(path string) error {
	switch err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
	case nil, unix.EINVAL, unix.ENOENT:
		return nil
	default:
		return fmt.Errorf("unmounting %s: %w", path, err)
	}
}
