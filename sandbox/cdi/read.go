package cdi

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	cdispec "tags.cncf.io/container-device-interface/specs-go"
)

const (
	maxSpec  = 4 << 20 // bytes of one file
	maxFiles = 1024    // of one directory
)

// Specs are those of some directories.
type Specs struct {
	dirs  []string
	files map[string]file // by path
}

// file is a spec, or why it could not be read.
type file struct {
	spec *cdispec.Spec
	err  error
}

// Open returns the specs in dirs, which may be absent. Those in a later
// directory go before those in an earlier one. Nothing is read yet.
func Open(dirs []string) *Specs { return &Specs{dirs: dirs} }

// device is one device and the spec that it is of.
type device struct {
	path string
	spec *cdispec.Spec
	cdispec.Device
}

// find returns the devices of these names, each once, in their order. It reads
// the directories: a driver that has just written its spec is found.
func (c *Specs) find(names []string) ([]device, error) {
	if len(names) > maxNames {
		return nil, fmt.Errorf("%d devices, more than %d: %w", len(names), maxNames, errdefs.ErrInvalidArgument)
	}
	list := c.read()
	var found []device
	seen := map[string]bool{}
	for _, full := range names {
		if seen[full] {
			continue
		}
		seen[full] = true
		kind, name, err := parseName(full)
		if err != nil {
			return nil, err
		}
		d, err := c.lookup(list, kind, name)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", full, err)
		}
		found = append(found, d)
	}
	return found, nil
}

// lookup finds one device in the last of the directories that has it.
func (c *Specs) lookup(list [][]string, kind, name string) (device, error) {
	var broken []error
	for _, paths := range slices.Backward(list) {
		var found []device
		for _, path := range paths {
			f := c.files[path]
			if f.err != nil {
				broken = append(broken, fmt.Errorf("%s: %w", path, f.err))
				continue
			}
			if f.spec.Kind != kind {
				continue
			}
			if i := slices.IndexFunc(f.spec.Devices, func(d cdispec.Device) bool { return d.Name == name }); i >= 0 {
				found = append(found, device{path, f.spec, f.spec.Devices[i]})
			}
		}
		if len(found) > 1 {
			return device{}, fmt.Errorf("both %s and %s have it, remove one: %w", found[0].path, found[1].path, errdefs.ErrFailedPrecondition)
		}
		if len(found) == 1 {
			return found[0], nil
		}
	}
	if len(broken) > 0 {
		return device{}, fmt.Errorf("no such device in %s, where these specs cannot be used: %w: %w", strings.Join(c.dirs, ", "), errors.Join(broken...), errdefs.ErrFailedPrecondition)
	}
	return device{}, fmt.Errorf("no such device in %s; is its driver installed on this node?: %w", strings.Join(c.dirs, ", "), errdefs.ErrFailedPrecondition)
}

// read reads all files and returns the paths of each directory.
func (c *Specs) read() [][]string {
	list := make([][]string, len(c.dirs))
	c.files = make(map[string]file)
	for i, dir := range c.dirs {
		paths, err := specFiles(dir)
		if err != nil { // is told to who asks for what the others do not have
			c.files[dir] = file{err: err}
			list[i] = []string{dir}
			continue
		}
		for _, path := range paths {
			data, err := readFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue // deleted meanwhile
			}
			f := file{err: err}
			if err == nil {
				f.spec, f.err = parseSpec(data)
			}
			c.files[path] = f
			list[i] = append(list[i], path)
		}
	}
	return list
}

// specFiles are the files of a directory that are called as specs are, by name.
func specFiles(dir string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); errors.Is(err, unix.ENOENT) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := ownedByUs(st); err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.Readdirnames(maxFiles + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(entries) > maxFiles {
		return nil, fmt.Errorf("has more than %d entries: %w", maxFiles, errdefs.ErrFailedPrecondition)
	}
	slices.Sort(entries)
	var paths []string
	for _, name := range entries {
		if ext := filepath.Ext(name); (ext == ".json" || ext == ".yaml") && !strings.HasPrefix(name, ".") {
			paths = append(paths, filepath.Join(dir, name))
		}
	}
	return paths, nil
}

// readFile reads a file that nobody but root can have written.
func readFile(path string) ([]byte, error) {
	// Neither a link nor a FIFO may lead or hold us up.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("is no regular file")
	}
	if err := ownedByUs(st); err != nil {
		return nil, err
	}
	if st.Size > maxSpec {
		return nil, fmt.Errorf("has %d bytes, more than %d", st.Size, maxSpec)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err == nil && len(data) > maxSpec {
		err = fmt.Errorf("has more than %d bytes", maxSpec)
	}
	return data, err
}

// ownedByUs refuses what another user could write: its hooks run as root.
func ownedByUs(st unix.Stat_t) error {
	if int(st.Uid) != 0 && int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("can be written by others than root (owner %d, mode %04o); give it to root and take their permission away: %w",
			st.Uid, st.Mode&0o7777, errdefs.ErrFailedPrecondition)
	}
	return nil
}
