package harness

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// systemd says whether the tests are for the systemd driver. As systemd, outside of the tests, makes the cgroups then,
// the tests see and use the machine's own, which must be there for them alone.
func systemd() bool { return os.Getenv("GANTRY_TEST_CGROUP_DRIVER") == "systemd" }

// CgroupParent is a pod's cgroup_parent, in the form of the driver that instances use. name has no dash.
func CgroupParent(name string) string {
	if systemd() {
		return "/gantrytest.slice/gantrytest-" + name + ".slice"
	}
	return "/gantrytest/" + name
}

// hierarchy is a mounted cgroup file system.
type hierarchy struct {
	mount   string // where
	options string // of a v1 hierarchy: its controllers or name, as mount(2) takes them; empty: v2
}

// hierarchies reads the mount table. cgroup v1 has one per controller or several, v2 one beside them or alone.
func hierarchies() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []hierarchy
	for sc := bufio.NewScanner(f); sc.Scan(); {
		// proc_pid_mountinfo(5): ... mount-point options [tags] - type source super-options
		before, after, ok := strings.Cut(sc.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		switch right[0] {
		case "cgroup2":
			list = append(list, hierarchy{mount: left[4]})
		case "cgroup":
			options := slices.DeleteFunc(strings.Split(right[2], ","), func(o string) bool {
				return o == "rw" || o == "ro" || o == "xattr" || strings.HasPrefix(o, "release_agent=") || o == "clone_children"
			})
			list = append(list, hierarchy{mount: left[4], options: strings.Join(options, ",")})
		}
	}
	return list, nil
}

// enclosure is a cgroup of the tests' own in every hierarchy. What they make is below it, so that leftovers are
// told from other work on the machine, and go with it.
type enclosure struct {
	name  string
	trees []hierarchy
	homes map[string]string // mount -> the caller's cgroup before
}

// enclose makes the cgroups and moves the caller into them.
func enclose() (*enclosure, error) {
	if systemd() {
		return &enclosure{}, nil
	}
	trees, err := hierarchies()
	if err != nil {
		return nil, err
	}
	e := &enclosure{name: fmt.Sprintf("gantry-harness-%d", os.Getpid()), trees: trees, homes: map[string]string{}}
	for _, t := range trees {
		if err := e.enter(t); err != nil {
			return nil, errors.Join(err, e.leave())
		}
	}
	return e, nil
}

func (e *enclosure) enter(t hierarchy) error {
	home, err := ownCgroup(t)
	if err != nil {
		return err
	}
	dir := filepath.Join(t.mount, e.name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} { // empty in a new v1 group, which then takes no process
		value, err := os.ReadFile(filepath.Join(t.mount, file))
		if t.options == "" || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, file), value, 0)
		}
		if err != nil {
			return err
		}
	}
	e.homes[t.mount] = filepath.Join(t.mount, home)
	return join(dir)
}

func join(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0)
}

// ownCgroup reads the caller's cgroup in a hierarchy: "id:controllers:path" (cgroups(7)).
func ownCgroup(t hierarchy) (string, error) {
	body, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(body)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && sameOptions(f[1], t.options) {
			return f[2], nil
		}
	}
	return "", fmt.Errorf("no cgroup of this process in the hierarchy at %s:\n%s", t.mount, body)
}

func sameOptions(a, b string) bool {
	x, y := strings.Split(a, ","), strings.Split(b, ",")
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

// goHome moves the caller back, but not what it has started in the cgroups.
func (e *enclosure) goHome() error {
	var errs []error
	for _, home := range e.homes {
		errs = append(errs, join(home))
	}
	return errors.Join(errs...)
}

// leave moves the caller back and removes the cgroups. A process that is still in one of them is an error.
func (e *enclosure) leave() error {
	errs := []error{e.goHome()}
	for _, t := range e.trees {
		if _, ok := e.homes[t.mount]; ok {
			errs = append(errs, removeCgroups(filepath.Join(t.mount, e.name)))
		}
	}
	return errors.Join(errs...)
}

// removeCgroups removes a tree of cgroups, deepest first; files in it go with their groups.
func removeCgroups(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroups(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return unix.Rmdir(dir)
}

// mountOwnCgroups is called with cgroup and mount namespaces of one's own: it mounts every hierarchy anew, so that
// /sys/fs/cgroup shows the enclosure as its root.
func mountOwnCgroups() error {
	if systemd() {
		return nil
	}
	trees, err := hierarchies()
	if err != nil {
		return err
	}
	for _, t := range trees {
		kind := "cgroup"
		if t.options == "" {
			kind = "cgroup2"
		}
		// The kernel does not mount a file system over itself.
		if err := unix.Unmount(t.mount, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmounting the cgroup hierarchy %s: %w", t.mount, err)
		}
		if err := unix.Mount(kind, t.mount, kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, t.options); err != nil {
			return fmt.Errorf("mounting the cgroup hierarchy %s: %w", t.mount, err)
		}
		if t.options == "" {
			// A v2 group with processes passes no controllers on, so the tests' own go into a leaf (cgroups(7)).
			leaf := filepath.Join(t.mount, "harness")
			if err := os.MkdirAll(leaf, 0o755); err != nil {
				return err
			}
			if err := join(leaf); err != nil {
				return err
			}
		}
	}
	return nil
}
