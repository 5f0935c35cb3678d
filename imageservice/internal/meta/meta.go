package meta

import (
	"encoding/json"
	"fmt"
	"regexp"
	"runtime/debug"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// version is written into each record; others are not understood.
const version = 1

// Layer is an unpacked layer.
type Layer struct {
	Version int           `json:"version"`
	Key     string        `json:"key"` // name of its directory
	DiffID  digest.Digest `json:"diffID"`
	Bytes   uint64        `json:"bytes"`
	Inodes  uint64        `json:"inodes"`
	// RootListed: its root directory has the mode and owner of the image's.
	RootListed bool `json:"rootListed,omitempty"`
	// RootOpaque: nothing of the layers below it shows.
	RootOpaque bool `json:"rootOpaque,omitempty"`
}

// Image is a complete image.
type Image struct {
	Version  int           `json:"version"`
	ID       string        `json:"id"` // digest of the config, of an artifact that of the manifest
	Manifest digest.Digest `json:"manifest"`
	Layers   []string      `json:"layers"` // keys, lowest first
	Artifact bool          `json:"artifact,omitempty"`
}

// State is what was found at Open.
type State struct {
	Images  map[string]Image
	Names   map[string]string // name → image id
	Layers  map[string]Layer
	Configs map[string][]byte // image id → config
	// Bad are records that could not be read, and Drop is the change without which they would be read again.
	Bad  []error
	Drop Change
}

// Change is one transaction.
type Change struct {
	PutLayers  []Layer
	DropLayers []string
	PutImage   *Image
	Content    map[digest.Digest][]byte // added
	DropImage  *Image                   // with its content
	PutNames   map[string]string
	DropNames  []string
	bad        [][2]string // bucket, key
}

func (c Change) isEmpty() bool {
	return !c.adds() && len(c.DropLayers)+len(c.DropNames)+len(c.bad) == 0 && c.DropImage == nil
}

func (c Change) adds() bool {
	return len(c.PutLayers)+len(c.Content)+len(c.PutNames) > 0 || c.PutImage != nil
}

// load reads all records.
func load(tx *bolt.Tx) (State, error) {
	s := State{
		Images: make(map[string]Image), Names: make(map[string]string),
		Layers: make(map[string]Layer), Configs: make(map[string][]byte),
	}
	for _, name := range buckets {
		if tx.Bucket(name) == nil { // on a read-only disk they are not made
			return s, fmt.Errorf("it has no records of %s", name)
		}
	}
	each := func(bucket string, read func(k, v []byte) error) {
		_ = tx.Bucket([]byte(bucket)).ForEach(func(k, v []byte) error {
			if err := read(k, v); err != nil {
				s.Bad = append(s.Bad, fmt.Errorf("%s record %q: %w", bucket, k, err))
				s.Drop.bad = append(s.Drop.bad, [2]string{bucket, string(k)})
			}
			return nil
		})
	}
	each("layers", func(k, v []byte) error {
		var l Layer
		if err := decode(v, &l, &l.Version); err != nil {
			return err
		}
		if l.Key != string(k) {
			return fmt.Errorf("is of %q", l.Key)
		}
		if err := l.check(); err != nil {
			return err
		}
		s.Layers[l.Key] = l
		return nil
	})
	content := tx.Bucket([]byte("content"))
	each("images", func(k, v []byte) error {
		var i Image
		if err := decode(v, &i, &i.Version); err != nil {
			return err
		}
		config := content.Get(k)
		if i.ID != string(k) || digest.FromBytes(config).String() != i.ID {
			return fmt.Errorf("config does not have the image's digest")
		}
		s.Images[i.ID] = i
		s.Configs[i.ID] = append([]byte(nil), config...)
		return nil
	})
	each("names", func(k, v []byte) error {
		if _, ok := s.Images[string(v)]; !ok {
			return fmt.Errorf("names image %q, which is not there", v)
		}
		s.Names[string(k)] = string(v)
		return nil
	})
	return s, nil
}

var validKey = regexp.MustCompile(`^[a-z0-9]+(\.[a-z]+)?$`) // a name within the layers' directory

// most is more bytes or inodes than any file system has; sums of it do not overflow.
const most = 1 << 50

// check refuses a record that leads out of the layers' directory, or that no layer has.
func (l *Layer) check() error {
	switch {
	case !validKey.MatchString(l.Key):
		return fmt.Errorf("key %q names no layer", l.Key)
	case l.Bytes > most || l.Inodes > most:
		return fmt.Errorf("bytes %d or inodes %d are more than a layer has", l.Bytes, l.Inodes)
	}
	return nil
}

func decode(v []byte, into any, ver *int) error {
	if err := json.Unmarshal(v, into); err != nil {
		return err
	}
	if *ver != version {
		return fmt.Errorf("version %d, not %d", *ver, version)
	}
	return nil
}

// Update makes one change, whole or not at all. It is durable afterwards.
func (s *Store) Update(c Change) (err error) {
	if c.isEmpty() {
		return nil
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s is damaged: %v", s.path, p)
		}
	}()
	if err := s.toWrite(); err != nil {
		return err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	err = s.db.Update(func(tx *bolt.Tx) error {
		if c.adds() {
			if err := s.reserve(tx.Size(), c.Content); err != nil {
				return err
			}
		}
		w := writer{tx: tx}
		for _, l := range c.PutLayers {
			l.Version = version
			w.putJSON("layers", l.Key, l)
		}
		for _, k := range c.DropLayers {
			w.drop("layers", k)
		}
		for d, body := range c.Content {
			w.put("content", d.String(), body)
		}
		if c.PutImage != nil {
			c.PutImage.Version = version
			w.putJSON("images", c.PutImage.ID, c.PutImage)
		}
		if c.DropImage != nil {
			w.drop("images", c.DropImage.ID)
			w.drop("content", c.DropImage.ID)
			w.drop("content", c.DropImage.Manifest.String())
		}
		for name, id := range c.PutNames {
			w.put("names", name, []byte(id))
		}
		for _, name := range c.DropNames {
			w.drop("names", name)
		}
		for _, b := range c.bad {
			w.drop(b[0], b[1])
		}
		return w.err
	})
	if err != nil {
		return fmt.Errorf("writing %s: %w", s.path, err)
	}
	return nil
}

// reserve has the file system give the file the blocks of what it uses, of
// content twice, since pages are not full, and of room; its size stays bbolt's.
func (s *Store) reserve(used int64, content map[digest.Digest][]byte) error {
	for _, body := range content {
		used += 2 * int64(len(body))
	}
	err := unix.EINTR
	for err == unix.EINTR {
		err, _ = unix.Fallocate(int(s.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, used+room).(unix.Errno)
	}
	if err != 0 && err != unix.EOPNOTSUPP { // not a file system that can
		return fmt.Errorf("making room: %w", err)
	}
	return nil
}

// Content returns the manifest or config of a digest, nil if it is not there.
func (s *Store) Content(d digest.Digest) (body []byte, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s is damaged: %v", s.path, p)
		}
	}()
	s.mu.RLock()
	defer s.mu.RUnlock()
	err = s.db.View(func(tx *bolt.Tx) error {
		body = append([]byte(nil), tx.Bucket([]byte("content")).Get([]byte(d.String()))...)
		return nil
	})
	return body, err
}

// writer stops at the first error.
type writer struct {
	tx  *bolt.Tx
	err error
}

func (w *writer) put(bucket, key string, value []byte) {
	if w.err == nil {
		w.err = w.tx.Bucket([]byte(bucket)).Put([]byte(key), value)
	}
}

func (w *writer) putJSON(bucket, key string, value any) {
	body, err := json.Marshal(value)
	if w.err == nil && err != nil {
		w.err = err
	}
	w.put(bucket, key, body)
}

func (w *writer) drop(bucket, key string) {
	if w.err == nil {
		w.err = w.tx.Bucket([]byte(bucket)).Delete([]byte(key))
	}
}
