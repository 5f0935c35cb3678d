package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/cmd/gantry/config"
	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/apparmor"
	"github.com/gantry-cri/gantry/sandbox/cgroup"
	"github.com/gantry-cri/gantry/sandbox/podinit"
	"github.com/gantry-cri/gantry/sandbox/selinux"
)

func checkKernel(r *report, cfg config.Config) {
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		r.ok("kernel", "Linux "+unix.ByteSliceToString(u.Release[:]))
	}
	const newer = "boot Linux 5.10 or newer"
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	r.require("openat2", closed(fd, err), newer)
	fd, err = unix.PidfdOpen(os.Getpid(), 0)
	r.require("pidfd_open", closed(fd, err), newer)
	if os.Geteuid() == 0 {
		fd, err = unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
		r.require("new mount API", closed(fd, err), newer)
	}
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts"} {
		if _, err := os.Lstat("/proc/self/ns/" + ns); err != nil {
			r.fail("namespaces", fmt.Sprintf("no %s namespaces; boot a kernel with CONFIG_NAMESPACES and all below it", ns))
		}
	}
	if n, err := readNumber("/proc/sys/user/max_user_namespaces"); err != nil || n == 0 {
		r.warn("user namespaces", "turned off; pods with hostUsers: false will not run (sysctl user.max_user_namespaces)")
	} else {
		r.ok("user namespaces", "available")
	}
	actions, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if err == nil && !strings.Contains(string(actions), "errno") {
		err = errors.New("the kernel has no filters")
	}
	r.require("seccomp", err, "boot a kernel with CONFIG_SECCOMP_FILTER")
	checkCapabilities(r)
	checkAppArmor(r)
	checkSELinux(r, cfg.SELinux)
}

func closed(fd int, err error) error {
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func readNumber(path string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
}

// checkAppArmor looks whether the default profile can be loaded where there is AppArmor.
func checkAppArmor(r *report) {
	on, err := apparmor.Enabled()
	if on {
		err = apparmor.Check(context.Background())
	}
	switch {
	case err != nil:
		r.warn("AppArmor", err.Error()+"; until then containers run without a profile, and those that ask for the default one are refused")
	case on:
		r.ok("AppArmor", "profile "+apparmor.DefaultProfile+" compiles")
	default:
		r.ok("AppArmor", "not on this machine")
	}
}

// checkSELinux looks whether containers get labels where the kernel has SELinux.
func checkSELinux(r *report, wanted bool) {
	switch {
	case wanted:
		r.require("SELinux", selinux.Check(), "set selinux = false, or boot with SELinux and a policy that knows containers")
	case selinux.Enabled():
		r.warn("SELinux", "containers are not confined by it; set selinux = true to give them labels")
	default:
		r.ok("SELinux", "not on this machine")
	}
}

// checkCapabilities looks for those that a root in a container may lack.
func checkCapabilities(r *report) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if os.Geteuid() != 0 {
		return // the user is a finding of its own
	}
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		r.warn("capabilities", fmt.Sprintf("cannot be read: %v", err))
		return
	}
	has := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	missing := false
	for name, c := range map[string]int{"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_MKNOD": unix.CAP_MKNOD} {
		if !has(c) {
			missing = true
			r.fail("capabilities", name+" is missing; run gantry with all capabilities")
		}
	}
	if !has(unix.CAP_SYS_RESOURCE) {
		missing = true
		r.warn("capabilities", "CAP_SYS_RESOURCE is missing: oom_score_adj cannot be lowered and limits not be raised, they stay at gantry's own")
	}
	if !missing {
		r.ok("capabilities", "all that are needed")
	}
}

func checkCgroups(ctx context.Context, r *report, cfg config.Config) {
	version, err := cgroup.Detect()
	if err != nil {
		r.fail("cgroups", err.Error())
		return
	}
	need := []string{"cpu", "memory", "pids", "cpuset"}
	if version == cgroup.V1 {
		need = append(need, "cpuacct", "devices", "freezer")
	}
	var missing []string
	for _, c := range need {
		if !cgroup.Has(c) {
			missing = append(missing, c)
		}
	}
	switch {
	case len(missing) > 0:
		r.fail("cgroups", fmt.Sprintf("version %d without the controllers %s; mount or enable them", version, strings.Join(missing, ", ")))
	case version == cgroup.V1:
		r.warn("cgroups", "version 1: works, but the kubelet refuses it unless failCgroupV1 is false; boot with systemd.unified_cgroup_hierarchy=1")
	default:
		r.ok("cgroups", "version 2 with "+strings.Join(need, ", "))
	}
	if !cgroup.Has("hugetlb") {
		r.warn("hugetlb", "no cgroup controller: limits on huge pages are not enforced, and crun 1.8 starts nothing on cgroup version 1; "+
			"mkdir /sys/fs/cgroup/hugetlb && mount -t cgroup -o hugetlb cgroup /sys/fs/cgroup/hugetlb")
	}
	if cfg.CgroupDriver == config.Systemd {
		if err := sandbox.CheckSystemd(ctx); err != nil {
			r.fail("cgroup driver", err.Error())
		} else {
			r.ok("cgroup driver", "systemd, which answers")
		}
	}
}

// tryOverlay mounts a container's root file system as Gantry does, in dir, on
// the file system that will hold them. It has the init of pods as /init.
// rootfs is "" when that fails.
func tryOverlay(r *report, dir string) (rootfs string, unmount func() error, err error) {
	lower, err := podinit.Install(filepath.Join(dir, "lower"))
	if err != nil {
		return "", nil, err
	}
	rootfs = filepath.Join(dir, "rootfs")
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{rootfs, upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", nil, err
		}
	}
	unmount = func() error { return freeOf(rootfs) }
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,index=off", lower, upper, work)
	err = unix.Mount("overlay", rootfs, "overlay", 0, options+",volatile")
	if errors.Is(err, unix.EINVAL) { // volatile is of Linux 5.10
		err = unix.Mount("overlay", rootfs, "overlay", 0, options)
	}
	r.require("overlay", err, fmt.Sprintf("load the overlay module, or put --root on a file system that it takes (now %s)", fsType(dir)))
	if err != nil {
		return "", unmount, nil
	}
	return rootfs, unmount, nil
}

// fsType names the file system of a path, as far as it matters here.
func fsType(path string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "unknown"
	}
	switch st.Type {
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay, which cannot hold another's upper layer"
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs, which needs ftype=1"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.NFS_SUPER_MAGIC:
		return "nfs, which is not fit for it"
	}
	return fmt.Sprintf("type %#x", st.Type)
}
