package meta

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// Store is the open file.
type Store struct {
	path string

	mu   sync.RWMutex // held for writing while db is opened anew
	db   *bolt.DB
	file *os.File // of db
}

var buckets = [][]byte{[]byte("images"), []byte("names"), []byte("layers"), []byte("content")}

// room is what the file has of the disk beyond what it uses after records were
// added, so that records can be deleted on a full one. That takes a few pages.
const room = 512 << 10

// Open reads the file, or begins a new one. damaged is why an old file was
// set aside. One that cannot be read now is an error, not damaged; one on a
// read-only disk is read, and can be written once the disk can.
func Open(path string) (s *Store, state State, damaged error, err error) {
	s, state, err = open(path)
	if err == nil || errors.Is(err, errdefs.ErrFailedPrecondition) || !isDamage(path, err) {
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

// isDamage tells what is wrong with the file from what is wrong with the node.
func isDamage(path string, err error) bool {
	if _, rerr := os.ReadFile(path); rerr != nil { // bbolt does not always say so
		err = rerr
	}
	var errno unix.Errno
	return !errors.As(err, &errno) || errno == unix.EISDIR
}

func open(path string) (_ *Store, state State, err error) {
	// bbolt trusts its pages: a damaged one makes it panic, or read where
	// nothing is mapped.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	s := &Store{path: path}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("reading %s: %v", path, p)
		}
		if err != nil && s.db != nil {
			_ = s.db.Close()
		}
	}()
	err = s.openFile(false)
	if errors.Is(err, unix.EROFS) {
		err = s.openFile(true)
	}
	if err != nil {
		return nil, State{}, err
	}
	if err := complete(s.db, path); err != nil {
		return nil, State{}, err
	}
	if !s.db.IsReadOnly() {
		if err := makeBuckets(s.db); err != nil {
			return nil, State{}, fmt.Errorf("writing %s: %w", path, err)
		}
	}
	err = s.db.View(func(tx *bolt.Tx) error {
		state, err = load(tx)
		return err
	})
	if err != nil {
		return nil, State{}, fmt.Errorf("reading %s: %w", path, err)
	}
	return s, state, nil
}

// openFile opens the database. Nothing is written for that, unless it is new.
func (s *Store) openFile(readOnly bool) (err error) {
	s.db, err = bolt.Open(s.path, 0o600, &bolt.Options{
		Timeout: 3 * time.Second, FreelistType: bolt.FreelistMapType, ReadOnly: readOnly,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag, mode)
			s.file = f
			return f, err
		},
	})
	if errors.Is(err, berrors.ErrTimeout) {
		return fmt.Errorf("%s is in use by another process: %w", s.path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("opening %s: %w", s.path, err)
	}
	return nil
}

// makeBuckets makes those that are missing.
func makeBuckets(db *bolt.DB) error {
	missing := false
	if err := db.View(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			missing = missing || tx.Bucket(name) == nil
		}
		return nil
	}); err != nil || !missing {
		return err
	}
	return db.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
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

// toWrite opens a file that could only be read so that it can be written.
func (s *Store) toWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.db.IsReadOnly() {
		return nil
	}
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("writing %w", err)
	}
	if err := errors.Join(f.Close(), s.db.Close()); err != nil {
		return err
	}
	read := s.db // closed: its methods return errors
	if err := s.openFile(false); err != nil {
		s.db = read
		return err
	}
	return nil
}

// Close closes the file.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.db.Close()
}
