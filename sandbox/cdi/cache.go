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
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	cdispec "tags.cncf.io/container-device-interface/specs-go"
)

const (
	maxSpec  = 4 << 20 // bytes of one file
	maxFiles = 1024    // of one directory
)

// Cache knows the specs of some directories. It is safe for concurrent use.
type Cache struct {
	dirs []string

	mu    sync.Mutex
	files map[string]file // by path, as last read; guarded by mu
}

// file is a spec as it was read, or why it could not be.
type file struct {
	state state
	spec  *cdispec.Spec
	err   error
}

// state tells a file from what was written in its place.
type state struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
	mode, uid    uint32
}

// Open returns a cache of the specs in dirs, which may be absent. Those in a
// later directory go before those in an earlier one. Nothing is read yet.
func Open(dirs []string) *Cache {
	return &Cache{dirs: slices.Clone(dirs), files: map[string]file{}}
}

// device is one device and the spec that it is of.
type device struct {
	path string
	spec *cdispec.Spec
	cdispec.Device
}

// find returns the devices of these names, each once, in their order. It looks
// at the directories and reads what has changed: a driver that has just
// written its spec is found.
func (c *Cache) find(names []string) ([]device, error) {
	if len(names) > maxNames {
		return nil, fmt.Errorf("%d devices, more than %d: %w", len(names), maxNames, errdefs.ErrInvalidArgument)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.refresh()
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
func (c *Cache) lookup(list [][]string, kind, name string) (device, error) {
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

// refresh brings files to what is on disk and returns the paths of each
// directory. c.mu is held.
func (c *Cache) refresh() [][]string {
	list := make([][]string, len(c.dirs))
	there := map[string]bool{}
	for i, dir := range c.dirs {
		paths, err := specFiles(dir)
		if err != nil { // is told to who asks for what the others do not have
			c.files[dir], there[dir] = file{err: err}, true
			list[i] = []string{dir}
			continue
		}
		for _, path := range paths {
			if f, ok := c.load(path); ok {
				c.files[path], there[path] = f, true
				list[i] = append(list[i], path)
			}
		}
	}
	for path := range c.files {
		if !there[path] {
			delete(c.files, path)
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

// load reads a file if it is not as it was; ok is false if it has gone.
func (c *Cache) load(path string) (f file, ok bool) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return file{}, false
	}
	if err != nil {
		return file{err: err}, true
	}
	now := stateOf(st)
	if old, known := c.files[path]; known && old.state == now {
		return old, true
	}
	data, read, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return file{}, false
	}
	f.state = now
	if err == nil {
		f.state = read
		f.spec, err = parseSpec(data)
	}
	f.err = err
	return f, true
}

// readFile reads a file that nobody but root can have written.
func readFile(path string) ([]byte, state, error) {
	// Neither a link nor a FIFO may lead or hold us up.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, state{}, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, state{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, state{}, errors.New("is no regular file")
	}
	if err := ownedByUs(st); err != nil {
		return nil, state{}, err
	}
	if st.Size > maxSpec {
		return nil, state{}, fmt.Errorf("has %d bytes, more than %d", st.Size, maxSpec)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err == nil && len(data) > maxSpec {
		err = fmt.Errorf("has more than %d bytes", maxSpec)
	}
	return data, stateOf(st), err
}

// ownedByUs refuses what another user could write: its hooks run as root.
func ownedByUs(st unix.Stat_t) error {
	if int(st.Uid) != 0 && int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("can be written by others than root (owner %d, mode %04o); give it to root and take their permission away: %w",
			st.Uid, st.Mode&0o7777, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func stateOf(st unix.Stat_t) state {
	return state{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim, mode: st.Mode, uid: st.Uid}
}
