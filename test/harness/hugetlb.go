package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const hugetlbMount = "/sys/fs/cgroup/hugetlb"

// MountHugetlb mounts the version 1 hierarchy of the hugetlb controller where none is, until unmount is called: on
// cgroup version 1 old crun starts no container without it. Not beside other instances, which would see it come and
// go; and to be called before the instance is started that needs it. With the mount goes the cgroup parent and all below it.
func MountHugetlb(parent string) (unmount func() error, err error) {
	nothing := func() error { return nil }
	trees, err := hierarchies()
	if err != nil {
		return nil, err
	}
	v1 := false
	for _, tree := range trees {
		if strings.Contains(","+tree.options+",", ",hugetlb,") {
			return nothing, nil
		}
		v1 = v1 || tree.options != ""
	}
	if !v1 {
		return nothing, nil
	}
	if err := os.Mkdir(hugetlbMount, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if err := mountHierarchy("hugetlb", hugetlbMount); err != nil {
		return nil, errors.Join(err, os.Remove(hugetlbMount))
	}
	return func() error {
		// The kernel keeps a hierarchy with groups, and the next test would find there what a failed one has left.
		if err := removeCgroups(filepath.Join(hugetlbMount, parent)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("emptying %s: %w", hugetlbMount, err)
		}
		if err := unix.Unmount(hugetlbMount, 0); err != nil {
			return fmt.Errorf("unmounting %s: %w", hugetlbMount, err)
		}
		// The directory is the machine's; another run of the tests, or who made folders in it when nothing was mounted, may be using it.
		if err := os.Remove(hugetlbMount); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}, nil
}

// mountHierarchy makes a version 1 hierarchy, which the kernel allows in the
// first cgroup namespace only: that of the process that has isolated this one.
func mountHierarchy(controller, target string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/cgroup", os.Getppid()))
		if err != nil {
			done <- err
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWCGROUP); err != nil {
			done <- fmt.Errorf("entering the first cgroup namespace: %w", err)
			return
		}
		if err := unix.Mount("cgroup", target, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, controller); err != nil {
			done <- fmt.Errorf("mounting the cgroup hierarchy of %s: %w", controller, err)
			return
		}
		done <- nil
	}()
	return <-done
}
