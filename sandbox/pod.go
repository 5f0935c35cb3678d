package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/selinux"
)

// DefaultShmSize is the size of a pod's /dev/shm in bytes, as Docker's and both peers'.
const DefaultShmSize = 64 << 20

// PodConfig is what [Host.CreatePod] makes.
type PodConfig struct {
	ID         string
	Namespaces Namespaces
	IDs        IDMap             // of the user namespace, if the pod has its own
	Hostname   string            // set in the pod's UTS namespace, if it has one
	Sysctls    map[string]string // by file below /proc/sys; only of namespaces that the pod has of its own
	ShmSize    int64             // bytes; used with an IPC namespace of its own
	Label      string            // SELinux label of /dev/shm and the files, "" = none
	Files      map[string][]byte // of FileResolvConf, FileHostname, FileHosts
}

// Names of the generated files of a pod.
const (
	FileResolvConf = "resolv.conf"
	FileHostname   = "hostname"
	FileHosts      = "hosts"
)

// PodPaths says where a pod's parts lie. A namespace that is the host's has the path "".
type PodPaths struct {
	User, Net, IPC, UTS, PID string
	Shm                      string
	Dir                      string
}

// PodPaths returns the paths of a pod with these namespaces. PID is where
// [Host.PinPID] puts a shared PID namespace.
func (h *Host) PodPaths(id string, own Namespaces) PodPaths {
	dir := filepath.Join(h.podsDir(), id)
	p := PodPaths{Dir: dir, PID: filepath.Join(dir, "ns/pid"), Shm: "/dev/shm"}
	if own.User {
		p.User = filepath.Join(dir, "ns/user")
	}
	if own.Net {
		p.Net = filepath.Join(dir, "ns/net")
	}
	if own.UTS {
		p.UTS = filepath.Join(dir, "ns/uts")
	}
	if own.IPC {
		p.IPC = filepath.Join(dir, "ns/ipc")
		p.Shm = filepath.Join(dir, "shm")
	}
	return p
}

// File is the path of a generated file of a pod.
func (h *Host) File(podID, name string) string { return filepath.Join(h.podsDir(), podID, name) }

// CreatePod makes the pod's namespaces, /dev/shm and files. Before any of it is
// to be found on the node it calls record, with whose error it gives up; the
// kernel makes the namespaces meanwhile. After an error [Host.RemovePod]
// removes what had been made.
func (h *Host) CreatePod(cfg PodConfig, record func() error) (PodPaths, error) {
	paths := h.PodPaths(cfg.ID, cfg.Namespaces)
	nsDir := filepath.Join(paths.Dir, "ns")
	thread := unshare(cfg.Namespaces)
	err := record()
	if err == nil {
		err = h.makePodDirs(paths.Dir, nsDir, cfg)
	}
	if err != nil {
		thread.job <- nil
		return PodPaths{}, errors.Join(err, <-thread.end)
	}
	thread.job <- func(proc int) error {
		if cfg.Namespaces.User {
			return makeMappedNamespaces(nsDir, filepath.Join(h.podInitRoot, "init"), cfg, proc)
		}
		return pinNamespaces(nsDir, cfg, proc)
	}
	err = h.makePodFiles(paths, cfg)
	if err = errors.Join(<-thread.end, err); err != nil {
		return PodPaths{}, err
	}
	return paths, nil
}

func (h *Host) makePodDirs(dir, nsDir string, cfg PodConfig) error {
	for _, d := range []string{dir, nsDir} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return fmt.Errorf("making the pod's directory: %w", err)
		}
	}
	if cfg.Namespaces.User {
		return h.LetPass()
	}
	return nil
}

func (h *Host) makePodFiles(paths PodPaths, cfg PodConfig) error {
	if cfg.Namespaces.IPC {
		if err := mountShm(paths.Shm, cfg); err != nil {
			return err
		}
	}
	for name, data := range cfg.Files {
		if err := h.WritePodFile(cfg, name, data); err != nil {
			return err
		}
	}
	return nil
}

// WritePodFile makes or replaces a generated file, which belongs to the pod's
// root. Containers read it, whatever their user.
func (h *Host) WritePodFile(cfg PodConfig, name string, data []byte) error {
	path := h.File(cfg.ID, name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return fmt.Errorf("writing %s of the pod: %w", name, err)
	}
	if cfg.Label != "" {
		if err := selinux.SetFile(path, cfg.Label); err != nil {
			return err
		}
	}
	if ids := cfg.IDs; ids != (IDMap{}) {
		if err := os.Lchown(path, int(ids.UID), int(ids.GID)); err != nil {
			return fmt.Errorf("giving %s of the pod to its root: %w", name, err)
		}
	}
	return os.Chmod(path, 0o644) // whatever the umask
}

func mountShm(target string, cfg PodConfig) error {
	if err := os.Mkdir(target, 0o700); err != nil {
		return fmt.Errorf("making /dev/shm of the pod: %w", err)
	}
	opts := "mode=1777,size=" + strconv.FormatInt(cfg.ShmSize, 10)
	if ids := cfg.IDs; ids != (IDMap{}) {
		opts += fmt.Sprintf(",uid=%d,gid=%d", ids.UID, ids.GID)
	}
	if cfg.Label != "" {
		opts += `,context="` + cfg.Label + `"` // quoted, for a level has commas
	}
	if err := unix.Mount("shm", target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, opts); err != nil {
		return fmt.Errorf("mounting /dev/shm of the pod (%s): %w", opts, err)
	}
	return nil
}

// PinPID pins the PID namespace of process pid, the pod's init, so that
// containers of the pod join it by path.
func (h *Host) PinPID(podID string, pid int) error {
	return pin(fmt.Sprintf("/proc/%d/ns/pid", pid), filepath.Join(h.podsDir(), podID, "ns/pid"))
}

// HasNamespaces reports whether the pod's own namespaces are still pinned: a
// run directory that was emptied, as some machines' is without a reboot, has lost them.
func (h *Host) HasNamespaces(id string, own Namespaces) bool {
	paths := h.PodPaths(id, own)
	for _, path := range []string{paths.User, paths.Net, paths.IPC, paths.UTS} {
		var st unix.Statfs_t
		if path != "" && (unix.Statfs(path, &st) != nil || st.Type != unix.NSFS_MAGIC) {
			return false
		}
	}
	return true
}

// ReleaseNamespaces drops the pins of a pod's namespaces and its /dev/shm; the
// kernel destroys them, and the interfaces in them, once no process is left.
// Nothing there is success.
func (h *Host) ReleaseNamespaces(podID string) error {
	dir := filepath.Join(h.podsDir(), podID)
	var errs []error
	for _, m := range []string{"ns/pid", "ns/net", "ns/ipc", "ns/uts", "ns/user", "shm"} {
		path := filepath.Join(dir, m)
		if err := unmount(path); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("removing the pin: %w", err))
		}
	}
	return errors.Join(errs...)
}

// RemovePod removes all of a pod, whatever of it exists. Its containers must be gone.
func (h *Host) RemovePod(podID string) error {
	// The release must succeed first: below a tmpfs that is still mounted a
	// recursive removal would be that of a user's files.
	if err := h.ReleaseNamespaces(podID); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(h.podsDir(), podID)); err != nil {
		return fmt.Errorf("removing the pod's directory: %w", err)
	}
	return nil
}
