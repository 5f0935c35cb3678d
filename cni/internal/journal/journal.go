package journal

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	maxFile    = 256 << 20 // what is behind is not read
	maxLine    = 4 << 20   // no longer one is written
	minGarbage = 1 << 20   // bytes of lines that no longer count before the file is written anew
	roomStep   = 64 << 10  // what the file gets of the disk at a time
)

// Journal is an open journal. It has the file for itself. Its methods may be called concurrently.
type Journal struct {
	path    string
	dropped int // damaged records, at Open

	mu      sync.Mutex
	f       *os.File
	lines   map[string]line
	size    int  // of the file
	live    int  // bytes of lines
	ends    int  // bytes of the lines that would delete the live ones
	room    int  // bytes of the file that have their place on the disk, written or not
	flushed int  // lines that are
	named   bool // the directory is flushed since the file was made, so a power cut leaves the file its name
	damaged bool // a write failed: what is at the end is not known
}

type line struct {
	Key     string          `json:"k"`
	Value   json.RawMessage `json:"v,omitempty"`
	Flushed bool            `json:"d,omitempty"`
	// ------ not saved ------
	text []byte
}

// Open reads a journal, which it makes when absent. accept gets every record in the order of keys; one that it refuses
// is dropped and set aside.
func Open(ctx context.Context, path string, accept func(key string, value json.RawMessage) error) (*Journal, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of a journal: %w", err)
	}
	j := &Journal{path: path, lines: map[string]line{}}
	info, err := os.Stat(path)
	var bad []error
	switch {
	case err == nil && !info.Mode().IsRegular():
		bad = append(bad, fmt.Errorf("%s is there instead of a file", info.Mode()))
	case err == nil:
		if bad, err = j.read(); err != nil {
			return nil, fmt.Errorf("reading journal: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("reading journal: %w", err)
	}
	for _, key := range slices.Sorted(maps.Keys(j.lines)) {
		if err := accept(key, j.lines[key].Value); err != nil {
			bad = append(bad, fmt.Errorf("record %.80q: %w", key, err))
			j.drop(key)
		}
	}
	if j.dropped = len(bad); j.dropped > 0 {
		klog.FromContext(ctx).Error(errors.Join(bad[:min(len(bad), 5)]...), "Dropped damaged records, the file as it was is kept",
			"records", len(bad), "path", path+".damaged")
		if err := setAside(path); err != nil {
			klog.FromContext(ctx).Error(err, "A damaged journal could not be kept", "path", path)
		}
	}
	if err := j.rewrite(); err != nil {
		klog.FromContext(ctx).Error(err, "A journal could not be written anew, the old file serves", "path", path)
		j.reuse()
	}
	for key, l := range j.lines { // the text is enough from here on
		l.Value = nil
		j.lines[key] = l
	}
	return j, nil
}

// Dropped is the number of damaged records that Open has set aside.
func (j *Journal) Dropped() int { return j.dropped }

// setAside gives the file a second name, of a damaged one: until it is replaced, its good records stay where the next
// Open looks for them. What is no file has none.
func setAside(path string) error {
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, SetAside(path))
	}
	if err := os.RemoveAll(path + ".damaged"); err != nil {
		return err
	}
	return os.Link(path, path+".damaged")
}

// SetAside renames what cannot be used as a record, of whatever kind it is, to <path>.damaged, in the place of what was
// set aside before.
func SetAside(path string) error {
	if err := os.RemoveAll(path + ".damaged"); err != nil {
		return err
	}
	return os.Rename(path, path+".damaged")
}

// read fills lines and returns an error for each line that cannot be read.
func (j *Journal) read() (bad []error, err error) {
	f, err := os.Open(j.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, err
	}
	n := 0
	for text := range bytes.Lines(data) {
		n++
		if !bytes.HasSuffix(text, []byte("\n")) {
			break
		}
		j.size += len(text)
		l := line{text: bytes.Clone(text)}
		if err := json.Unmarshal(text, &l); err != nil {
			bad = append(bad, fmt.Errorf("line %d: %w", n, err))
			continue
		}
		j.drop(l.Key)
		if l.Value != nil {
			j.keep(l)
		}
	}
	return bad, nil
}

func (j *Journal) keep(l line) {
	j.drop(l.Key)
	j.lines[l.Key] = l
	j.live += len(l.text)
	j.ends += len(deletion(l.Key))
	if l.Flushed {
		j.flushed++
	}
}

func (j *Journal) drop(key string) {
	l, ok := j.lines[key]
	if !ok {
		return
	}
	j.live -= len(l.text)
	j.ends -= len(deletion(key))
	if l.Flushed {
		j.flushed--
	}
	delete(j.lines, key)
}

// Put sets the record of a key. Once it returns the record survives the daemon; flushed, a power cut too. On error the
// record is as before.
func (j *Journal) Put(key string, value any, flush bool) error {
	v, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("journal record %s: %w", key, err)
	}
	text, err := json.Marshal(line{Key: key, Value: v, Flushed: flush})
	if err != nil {
		return fmt.Errorf("journal record %s: %w", key, err)
	}
	text = append(text, '\n')
	if len(text) > maxLine {
		return fmt.Errorf("journal record %s has %d bytes, more than %d", key, len(text), maxLine)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.append(text, len(deletion(key)), flush); err != nil {
		return err
	}
	j.keep(line{Key: key, Flushed: flush, text: text})
	return nil
}

// Delete deletes the record of a key. An absent one is no error. On error the record is as before.
func (j *Journal) Delete(key string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, ok := j.lines[key]; !ok {
		return nil
	}
	if err := j.append(deletion(key), 0, false); err != nil {
		return err
	}
	j.drop(key)
	return nil
}

// deletion is the line that deletes a record.
func deletion(key string) []byte {
	text, _ := json.Marshal(line{Key: key}) // of a string, which has no error
	return append(text, '\n')
}

// append writes a line that will need another one of ends bytes; without any it is such a line itself.
func (j *Journal) append(text []byte, ends int, flush bool) error {
	if j.damaged || j.size-j.live > max(minGarbage, 2*j.live) {
		if err := j.rewrite(); err != nil && j.damaged {
			return err
		}
	}
	if need := j.size + len(text) + j.ends + ends; ends > 0 && need > j.room {
		if err := reserve(j.f, need+roomStep); err != nil {
			return fmt.Errorf("making room in journal %s: %w", j.path, err)
		}
		j.room = need + roomStep
	}
	n, err := j.f.WriteAt(text, int64(j.size))
	if err == nil && flush {
		err = j.sync()
	}
	if err != nil {
		j.damaged = true
		return fmt.Errorf("writing journal: %w", err)
	}
	j.size += n
	return nil
}

// reserve has the file system give the file the blocks of its first n bytes, and leaves its size.
func reserve(f *os.File, n int) error {
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, int64(n))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENODEV): // not a file system that can, or no file on one
			return nil
		}
		return err
	}
}

// sync flushes the file, and its name where that is new.
func (j *Journal) sync() error {
	if err := j.f.Sync(); err != nil || j.named {
		return err
	}
	dir, err := os.Open(filepath.Dir(j.path))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return err
	}
	j.named = true
	return nil
}

// reuse goes on with the file that Open has read, from the end of its last whole line on. If it cannot be written, or
// has lines that were set aside and would be so again, the next change writes it anew.
func (j *Journal) reuse() {
	j.damaged = true
	if j.dropped > 0 {
		return
	}
	f, err := os.OpenFile(j.path, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	j.f, j.damaged = f, false
}

// rewrite replaces the file by one with the live records.
func (j *Journal) rewrite() (err error) {
	f, err := os.OpenFile(j.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("writing journal anew: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing journal anew: %w", err), f.Close())
			_ = os.Remove(j.path + ".new") // the room it has is needed
		}
	}()
	w := bufio.NewWriter(f)
	for _, key := range slices.Sorted(maps.Keys(j.lines)) {
		_, _ = w.Write(j.lines[key].text) // Flush has the error
	}
	if err := w.Flush(); err != nil {
		return err
	}
	room := j.live + j.ends + roomStep
	if err := reserve(f, room); err != nil {
		return err
	}
	if j.flushed > 0 { // else an empty file after a power cut is as good
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := os.Rename(j.path+".new", j.path); err != nil {
		return err
	}
	if j.f != nil {
		_ = j.f.Close() // replaced, nothing more is read from it
	}
	j.f, j.size, j.room, j.damaged, j.named = f, j.live, room, false, false
	return nil
}

// Close closes the file.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil { // it never could be written
		return nil
	}
	return j.f.Close()
}
