package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	version = 1
	suffix  = ".json"
	// maxRecord bounds what is read back; a request of 16 MiB, the kubelet's limit, is below it in JSON.
	maxRecord = 64 << 20
)

// How many empty files wait for the records to come: at least, by KeepSpare, and
// at most, of records that were deleted.
const minSpare, maxSpare = 32, 128

const (
	block = 4096
	room  = 1024 // at least, for what a record gets in its life: addresses, states, an exit and its reason

	readTries, readPause = 5, 200 * time.Millisecond
)

// Dir is the directory of one kind of record. Its methods may be called
// concurrently for different ids; calls for the same id must not overlap.
type Dir[T any] struct {
	path, quarantine string

	few chan struct{} // tells KeepSpare that there are fewer than minSpare

	mu     sync.Mutex
	spare  []string // paths of empty files
	spares int      // numbers them
}

type envelope[T any] struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Record  T      `json:"record"`
}

// Open makes the directory root/kind if it is missing.
func Open[T any](root, kind string) (*Dir[T], error) {
	d := &Dir[T]{path: filepath.Join(root, kind), quarantine: filepath.Join(root, "quarantine"), few: make(chan struct{}, 1)}
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of the records: %w", err)
	}
	return d, nil
}

// Load reads all records. One that cannot be read, or that cannot be
// understood, is moved to the quarantine directory and reported in damaged;
// it is never a reason not to start.
func (d *Dir[T]) Load() (records map[string]T, damaged []error, err error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the records: %w", err)
	}
	records = make(map[string]T, len(entries))
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		rec, err := d.read(id)
		for try := 0; try < readTries && errors.Is(err, unix.EIO); try++ { // which may pass
			time.Sleep(readPause)
			rec, err = d.read(id)
		}
		if err != nil && !isDamage(err) {
			return nil, nil, fmt.Errorf("reading record %s: %w", id, err)
		}
		if err != nil {
			if err = d.setAside(id, err); errors.Is(err, unix.EIO) && exists(d.file(id)) {
				return nil, nil, err // it is the disk, not the record
			}
			damaged = append(damaged, err)
			continue
		}
		records[id] = rec
	}
	for _, e := range entries { // shadows that a crash has left alone, and an earlier process's spare files
		id, ok := strings.CutSuffix(e.Name(), suffix)
		if _, known := records[strings.TrimSuffix(id, ".tmp")]; !ok && !known {
			_ = os.RemoveAll(filepath.Join(d.path, e.Name()))
		}
	}
	return records, damaged, nil
}

// isDamage tells what is wrong with a record from what is wrong with the node: its pod would be taken for nobody's.
func isDamage(err error) bool {
	var errno unix.Errno
	return !errors.As(err, &errno) || errno == unix.EIO
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func (d *Dir[T]) read(id string) (T, error) {
	var env envelope[T]
	path := d.file(id)
	info, err := os.Lstat(path)
	if err != nil {
		return env.Record, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxRecord {
		return env.Record, fmt.Errorf("%v of %d bytes is no record", info.Mode().Type(), info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return env.Record, err
	}
	// The version first: of a record of another one nothing else is known.
	var head envelope[json.RawMessage]
	if err := json.Unmarshal(data, &head); err != nil {
		return env.Record, err
	}
	if head.Version != version {
		return env.Record, fmt.Errorf("version %d, this Gantry knows %d", head.Version, version)
	}
	if head.ID != id {
		return env.Record, fmt.Errorf("is the record of %q", head.ID)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	err = dec.Decode(&env)
	return env.Record, err
}

// SetAside moves a record to the quarantine directory because of cause and
// returns the error to log.
func (d *Dir[T]) SetAside(id string, cause error) error { return d.setAside(id, cause) }

func (d *Dir[T]) setAside(id string, cause error) error {
	kind := filepath.Base(d.path)
	to := filepath.Join(d.quarantine, fmt.Sprintf("%s-%s%s-%d", kind, id, suffix, time.Now().UnixNano()))
	err := fmt.Errorf("record %s of %s set aside as %s: %w", id, kind, to, cause)
	if mkErr := os.MkdirAll(d.quarantine, 0o700); mkErr != nil {
		return errors.Join(err, mkErr)
	}
	_ = os.Remove(d.shadow(id)) // if there is one; the next Load would remove it
	return errors.Join(err, os.Rename(d.file(id), to))
}

// Put writes or replaces the record of id: readers see the old or the new one,
// whole. On a full disk the first version may fail, and one that is longer by
// more than there is room for; see doc.go.
func (d *Dir[T]) Put(id string, rec T) error {
	data, err := json.Marshal(envelope[T]{version, id, rec})
	if err != nil {
		return fmt.Errorf("encoding the record: %w", err)
	}
	if err := d.put(id, data); err != nil {
		return fmt.Errorf("writing the record: %w", err)
	}
	return nil
}

// put exchanges the record with its shadow, which holds the version before it.
// That is as atomic as renaming a new file over the old, but that costs 0.6 ms
// on ext4, which takes it for a sign to write the file to the disk at once, and
// making and deleting a file each time costs 0.1 ms, as ext4 searches past all
// inodes that were deleted lately. And the shadow is the room of the next version.
func (d *Dir[T]) put(id string, data []byte) error {
	shadow, file := d.shadow(id), d.file(id)
	err := writeOver(shadow, data, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if !exists(file) {
			return d.first(id, data)
		}
		err = d.makeShadow(shadow, data)
	}
	if err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, shadow, unix.AT_FDCWD, file, unix.RENAME_EXCHANGE)
	if err == nil {
		return nil
	}
	return os.Rename(shadow, file) // a file system that cannot exchange
}

// first writes the first version of a record, and its shadow. After an error there is neither.
func (d *Dir[T]) first(id string, data []byte) error {
	shadow := d.shadow(id)
	err := d.makeShadow(shadow, data)
	if err == nil {
		err = os.Rename(shadow, d.file(id))
	}
	if err == nil {
		err = d.makeShadow(shadow, data)
	}
	if err != nil {
		return errors.Join(err, d.Delete(id))
	}
	return nil
}

// makeShadow makes the shadow of a record, of a spare file if there is one.
func (d *Dir[T]) makeShadow(shadow string, data []byte) error {
	if err := d.reuse(shadow); err != nil {
		return err
	}
	return writeOver(shadow, data, unix.O_CREAT)
}

// writeOver replaces the content of a file, which it fills up with spaces: it
// never gets smaller, and there is room for the next version to be a little longer.
func writeOver(path string, data []byte, flags int) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|flags, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path) // without asking whether the poller can watch it, as os.OpenFile does
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		size := max((len(data)+room+block-1)/block*block, int(st.Size))
		_, err = f.WriteAt(append(data, bytes.Repeat([]byte{' '}, size-len(data))...), 0)
	}
	return errors.Join(err, f.Close())
}

// Delete removes the record of id. Absent is success.
func (d *Dir[T]) Delete(id string) error {
	for _, path := range []string{d.file(id), d.shadow(id)} {
		if err := d.discard(path); err != nil {
			return fmt.Errorf("deleting the record: %w", err)
		}
	}
	return nil
}

// discard keeps a file that is no record any more for one to come, so that the
// making of a pod makes no files here: where files come and go, by whomever,
// a new one costs up to a millisecond on ext4, for the reason above.
func (d *Dir[T]) discard(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.spare) >= maxSpare {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	spare := d.nextSpare()
	switch err := unix.Rename(path, spare); {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil && !exists(path): // a read-only disk refuses before it looks
		return nil
	case err != nil: // on a full disk the new name may not fit
		return os.Remove(path)
	}
	// Environments are in records: nothing of one is kept. Not 0, as above.
	if err := unix.Truncate(spare, 1); err != nil {
		return os.Remove(spare)
	}
	d.spare = append(d.spare, spare)
	return nil
}

// nextSpare names the next spare file. mu is held.
func (d *Dir[T]) nextSpare() string {
	d.spares++
	return filepath.Join(d.path, fmt.Sprintf("spare-%d", d.spares))
}

// KeepSpare makes empty files until ctx ends, so that some are ready however
// many pods come and none goes. Call it after Load.
func (d *Dir[T]) KeepSpare(ctx context.Context) {
	for {
		for d.makeSpare() {
		}
		select {
		case <-ctx.Done():
			return
		case <-d.few:
		}
	}
}

// makeSpare makes a spare file if there are too few. Failing is no error: the
// record that finds none makes its own file, and says why if it cannot.
func (d *Dir[T]) makeSpare() bool {
	d.mu.Lock()
	if len(d.spare) >= minSpare {
		d.mu.Unlock()
		return false
	}
	spare := d.nextSpare()
	d.mu.Unlock()
	if err := d.makeFile(spare); err != nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.spare = append(d.spare, spare)
	return true
}

// makeFile makes an empty file. The slow part, finding an inode, is done before
// the file has a name, without the directory's lock, which the records need.
func (d *Dir[T]) makeFile(path string) error {
	fd, err := unix.Open(d.path, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil { // not every file system has it
		return writeOver(path, nil, unix.O_CREAT|unix.O_EXCL)
	}
	defer unix.Close(fd)
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
}

// reuse makes a spare file the shadow, if there is one.
func (d *Dir[T]) reuse(shadow string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.spare) <= minSpare {
		select {
		case d.few <- struct{}{}:
		default: // it knows
		}
	}
	if len(d.spare) == 0 {
		return nil
	}
	spare := d.spare[len(d.spare)-1]
	d.spare = d.spare[:len(d.spare)-1]
	if err := unix.Rename(spare, shadow); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.LinkError{Op: "rename", Old: spare, New: shadow, Err: err}
	}
	return nil
}

func (d *Dir[T]) shadow(id string) string { return filepath.Join(d.path, id+".tmp") }
func (d *Dir[T]) file(id string) string   { return filepath.Join(d.path, id+suffix) }
