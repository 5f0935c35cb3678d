package hostdev

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	maxEntries = 16384 // of one walk: large hosts have some thousand nodes in /dev
	maxDepth   = 16
)

// ownEntries are those of /dev that every container has of its own, and file
// systems that are mounted there and hold no devices of the host.
var ownEntries = []string{
	".lxc", ".lxd-mounts", ".udev", "console", "fd", "hugepages", "mqueue", "ptmx", "pts", "shm",
}

// Devices describes the device at hostPath, or every one in a directory, as
// nodes at containerPath ("" = the same path) and the cgroup rules that grant
// permissions, a choice of r, w and m. A symbolic link is followed to its
// target. What is no device, or a directory without any, or missing, is
// errdefs.ErrInvalidArgument, the last fs.ErrNotExist as well.
func Devices(hostPath, containerPath, permissions string) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	if permissions == "" || strings.Trim(permissions, "rwm") != "" {
		return nil, nil, fmt.Errorf("device %q: permissions %q are not one or more of r, w and m: %w", hostPath, permissions, errdefs.ErrInvalidArgument)
	}
	if !filepath.IsAbs(hostPath) {
		return nil, nil, fmt.Errorf("device %q: host_path is not absolute: %w", hostPath, errdefs.ErrInvalidArgument)
	}
	if containerPath == "" {
		containerPath = hostPath
	}
	if slices.Contains(strings.Split(containerPath, "/"), "..") {
		return nil, nil, fmt.Errorf("device %q: container_path %q holds \"..\": %w", hostPath, containerPath, errdefs.ErrInvalidArgument)
	}
	containerPath = path.Clean(containerPath)
	nodes, err := find(hostPath, containerPath)
	if err != nil {
		return nil, nil, fmt.Errorf("device %q: %w", hostPath, err)
	}
	var rules []specs.LinuxDeviceCgroup
	for _, d := range nodes {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: permissions})
	}
	return nodes, rules, nil
}

func find(hostPath, containerPath string) ([]specs.LinuxDevice, error) {
	resolved, err := filepath.EvalSymlinks(hostPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(resolved)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		d, ok := device(info, containerPath)
		if !ok {
			return nil, fmt.Errorf("it is no device: %w", errdefs.ErrInvalidArgument)
		}
		return []specs.LinuxDevice{d}, nil
	}
	if err := checkDir(resolved, info); err != nil {
		return nil, err
	}
	skip := []string{}
	if resolved == "/dev" {
		skip = ownEntries
	}
	nodes, err := walk(resolved, containerPath, skip)
	if err == nil && len(nodes) == 0 {
		err = fmt.Errorf("the directory holds no device: %w", errdefs.ErrInvalidArgument)
	}
	return nodes, err
}

// All describes every device of the host at its own path, for a privileged
// container.
func All() ([]specs.LinuxDevice, error) {
	nodes, err := walk("/dev", "/dev", ownEntries)
	if err != nil {
		return nil, fmt.Errorf("listing the host's devices: %w", err)
	}
	return nodes, nil
}

// checkDir refuses directories that no one keeps devices in and that are large
// or endless: the root itself and the kernel's file systems, however they are named.
func checkDir(dir string, info fs.FileInfo) error {
	root, err := os.Lstat("/")
	if err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	kernelFS := []int64{unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC}
	inKernelFS := slices.Contains(kernelFS, int64(st.Type)) || dir == "/sys" || strings.HasPrefix(dir, "/sys/") || dir == "/proc" || strings.HasPrefix(dir, "/proc/")
	if os.SameFile(root, info) || inKernelFS {
		return fmt.Errorf("devices of directory %q cannot be given to a container, name the device: %w", dir, errdefs.ErrInvalidArgument)
	}
	return nil
}

// walk finds the devices below dir, through descriptors so that a directory
// that is swapped for a link does not lead elsewhere. skip names entries of dir itself.
func walk(dir, target string, skip []string) ([]specs.LinuxDevice, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	w := walker{root: root, target: target, left: maxEntries}
	if err := w.visit(".", skip, maxDepth); err != nil {
		return nil, err
	}
	return w.nodes, nil
}

type walker struct {
	root   *os.Root
	target string
	left   int // entries that may still be seen
	nodes  []specs.LinuxDevice
}

func (w *walker) visit(dir string, skip []string, depth int) error {
	if depth == 0 {
		return fmt.Errorf("directory %q lies more than %d deep: %w", dir, maxDepth, errdefs.ErrInvalidArgument)
	}
	names, err := w.list(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if slices.Contains(skip, name) {
			continue
		}
		rel := path.Join(dir, name)
		info, err := w.root.Lstat(rel)
		if errors.Is(err, fs.ErrNotExist) {
			continue // unplugged
		}
		if err != nil {
			return err
		}
		if info.IsDir() {
			if err := w.visit(rel, nil, depth-1); err != nil {
				return err
			}
		} else if d, ok := device(info, path.Join(w.target, rel)); ok {
			w.nodes = append(w.nodes, d)
		}
	}
	return nil
}

// list returns the names in a directory, in order, and counts them.
func (w *walker) list(dir string) ([]string, error) {
	f, err := w.root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(w.left + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if w.left -= len(names); w.left < 0 {
		return nil, fmt.Errorf("more than %d entries: %w", maxEntries, errdefs.ErrInvalidArgument)
	}
	slices.Sort(names)
	return names, nil
}

// device describes a character or block device.
func device(info fs.FileInfo, target string) (specs.LinuxDevice, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode()&fs.ModeDevice == 0 {
		return specs.LinuxDevice{}, false
	}
	kind := "b"
	if info.Mode()&fs.ModeCharDevice != 0 {
		kind = "c"
	}
	mode := info.Mode().Perm()
	return specs.LinuxDevice{
		Path:     target,
		Type:     kind,
		Major:    int64(unix.Major(uint64(st.Rdev))),
		Minor:    int64(unix.Minor(uint64(st.Rdev))),
		FileMode: &mode,
		UID:      &st.Uid,
		GID:      &st.Gid,
	}, true
}
