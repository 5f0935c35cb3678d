package meta

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
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
	// Bad are records that could not be read; they are no longer there.
	Bad []error
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
}

// Store is the open file.
type Store struct{ db *bolt.DB }

var buckets = [][]byte{[]byte("images"), []byte("names"), []byte("layers"), []byte("content")}

// Open reads the file, or begins a new one. damaged is why an old file was
// set aside.
func Open(path string) (s *Store, state State, damaged error, err error) {
	s, state, err = open(path)
	if err == nil || errors.Is(err, errdefs.ErrFailedPrecondition) {
		return s, state, nil, err
	}
	aside := fmt.Sprintf("%s.damaged-%s", path, time.Now().UTC().Format("20060102T150405.000000000"))
	if rerr := os.Rename(path, aside); rerr != nil {
		return nil, State{}, nil, errors.Join(err, rerr)
	}
	damaged = fmt.Errorf("%w; moved to %s", err, aside)
	s, state, err = open(path)
	return s, state, damaged, err
}

func open(path string) (_ *Store, state State, err error) {
	// bbolt trusts its pages: a damaged one makes it panic, or read where
	// nothing is mapped.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var db *bolt.DB
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("reading %s: %v", path, p)
		}
		if err != nil && db != nil {
			_ = db.Close()
		}
	}()
	db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: 3 * time.Second, FreelistType: bolt.FreelistMapType})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, State{}, fmt.Errorf("%s is in use by another process: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, State{}, fmt.Errorf("opening %s: %w", path, err)
	}
	if err := complete(db, path); err != nil {
		return nil, State{}, err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		state, err = load(tx)
		return err
	})
	if err != nil {
		return nil, State{}, fmt.Errorf("reading %s: %w", path, err)
	}
	return &Store{db}, state, nil
}

// complete finds a file that was cut short before a page beyond its end is
// touched.
func complete(db *bolt.DB, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return db.View(func(tx *bolt.Tx) error {
		if info.Size() < tx.Size() {
			return fmt.Errorf("%s has %d of its %d bytes", path, info.Size(), tx.Size())
		}
		return nil
	})
}

// load reads all records and deletes those that cannot be read.
func load(tx *bolt.Tx) (State, error) {
	s := State{
		Images: make(map[string]Image), Names: make(map[string]string),
		Layers: make(map[string]Layer), Configs: make(map[string][]byte),
	}
	bad := func(bucket string, key []byte, err error) {
		s.Bad = append(s.Bad, fmt.Errorf("%s record %q: %w", bucket, key, err))
	}
	var drop [][2][]byte
	each := func(bucket string, read func(k, v []byte) error) {
		_ = tx.Bucket([]byte(bucket)).ForEach(func(k, v []byte) error {
			if err := read(k, v); err != nil {
				bad(bucket, k, err)
				drop = append(drop, [2][]byte{[]byte(bucket), append([]byte(nil), k...)})
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
	for _, d := range drop {
		if err := tx.Bucket(d[0]).Delete(d[1]); err != nil {
			return s, err
		}
	}
	return s, nil
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
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s is damaged: %v", s.db.Path(), p)
		}
	}()
	err = s.db.Update(func(tx *bolt.Tx) error {
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
		return w.err
	})
	if err != nil {
		return fmt.Errorf("writing %s: %w", s.db.Path(), err)
	}
	return nil
}

// Content returns the manifest or config of a digest, nil if it is not there.
func (s *Store) Content(d digest.Digest) (body []byte, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s is damaged: %v", s.db.Path(), p)
		}
	}()
	err = s.db.View(func(tx *bolt.Tx) error {
		body = append([]byte(nil), tx.Bucket([]byte("content")).Get([]byte(d.String()))...)
		return nil
	})
	return body, err
}

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }

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
