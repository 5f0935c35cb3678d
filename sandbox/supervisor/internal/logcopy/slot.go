package logcopy

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/gate"
)

const (
	pageSize = 4096
	rawSize  = 256 << 10 // of a slot
	outSize  = 384 << 10 // of a formatted write
	// keepFree is how many slots and write buffers wait for the next output,
	// for keepFor after the last one.
	keepFree = 2
	keepFor  = 5 * time.Second
	maxName  = 128

	sentinelSize = 16
)

// State of a slot, three bits of its word; see doc.go.
const (
	free = iota
	filled
	reading
	writing
)

// header is the first page of a slot's file. Fields besides word are stored
// before the word that gives them meaning.
type header struct {
	word     atomic.Uint64 // gap<<59 | state<<56 | a<<28 | b
	magic    uint64
	want     uint64 // reading: how much read(2) was asked for, all of it there
	sentinel [sentinelSize]byte
	dev, ino uint64 // writing: the log file
	size     int64  // writing: its length before the write
	stream   uint64 // 0 stdout, 1 stderr
	nameLen  uint64
	name     [maxName]byte // the container's id
	last     int64         // time of the last line, in ns since 1970; 0: none is known
}

// Layout is that of the staging slots, which a successor of another build may
// have to read: it changes with what is in them (header, doc.go).
const Layout = 0x67616e7472790001

// slot is one mapped staging file.
type slot struct {
	path string
	mem  []byte
	h    *header
	raw  []byte

	reserved int // bytes of raw that the file system has given memory for
	gap      gap // goes into the word with the next set
}

func openSlot(path string, create bool) (*slot, error) {
	flags := unix.O_RDWR | unix.O_CLOEXEC | unix.O_NOFOLLOW
	if create {
		flags |= unix.O_CREAT | unix.O_EXCL
	}
	fd, err := unix.Open(path, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	defer unix.Close(fd)
	size := int64(pageSize + rawSize)
	if create {
		err := unix.Ftruncate(fd, size)
		if err == nil {
			err = unix.Fallocate(fd, 0, 0, pageSize)
		}
		if err != nil {
			_ = unix.Unlink(path)
			return nil, fmt.Errorf("sizing %s: %w", path, err)
		}
	} else {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		if st.Size != size {
			return nil, fmt.Errorf("reading %s: size %d is not %d", path, st.Size, size)
		}
	}
	mem, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping %s: %w", path, err)
	}
	return &slot{path: path, mem: mem, h: (*header)(unsafe.Pointer(&mem[0])), raw: mem[pageSize:]}, nil
}

func (s *slot) set(state uint64, a, b int) {
	s.h.word.Store(s.gap.bits()<<59 | state<<56 | uint64(a)<<28 | uint64(b))
}

func (s *slot) get() (state uint64, a, b int) {
	w := s.h.word.Load()
	return w >> 56 & 7, int(w >> 28 & (1<<28 - 1)), int(w & (1<<28 - 1))
}

// needed says whether a successor has to know of the slot.
func (s *slot) needed() bool {
	_, a, b := s.get()
	return a < b || s.gap != gap{}
}

// room makes space behind b and returns the bounds. What is unfinished, at
// most maxLine, moves to the front when it is far from there.
func (s *slot) room() (a, b int) {
	_, a, b = s.get()
	if a == b {
		s.set(filled, 0, 0)
		return 0, 0
	}
	if n := b - a; a >= n && b > rawSize/2 {
		copy(s.raw, s.raw[a:b])
		s.set(filled, 0, n)
		return 0, n
	}
	return a, b
}

// reserve lets raw[:n] be written to. Without it a file system that is full
// would say so by SIGBUS, which ends this process.
func (s *slot) reserve(n int) error {
	if n <= s.reserved {
		return nil
	}
	fd, err := unix.Open(s.path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", s.path, err)
	}
	defer unix.Close(fd)
	if err := unix.Fallocate(fd, 0, pageSize, int64(n)); err != nil {
		return fmt.Errorf("getting memory for %s: %w", s.path, err)
	}
	s.reserved = n
	return nil
}

// beginRead marks that want bytes are about to be read to raw[b:].
func (s *slot) beginRead(a, b, want int, sentinel *[sentinelSize]byte) {
	for i := b; i < b+want; i += pageSize {
		s.raw[i] = 0 // so that read(2) meets no page fault, which SIGKILL would cut short
	}
	s.raw[b+want-1] = 0
	s.h.want = uint64(want)
	s.h.sentinel = *sentinel
	copy(s.raw[b:b+want], sentinel[:])
	s.set(reading, a, b)
}

// settle turns a slot of any state, left by a killed process, into a filled
// one. It returns the log's length before the write that was on, or -1.
func (s *slot) settle() (dev, ino uint64, size int64, err error) {
	state, a, b := s.get()
	s.gap = gapOf(s.h.word.Load() >> 59)
	if s.h.magic != Layout || a > b || b > rawSize || s.h.nameLen > maxName {
		return 0, 0, 0, fmt.Errorf("slot %s is damaged", s.path)
	}
	switch state {
	case filled:
		return 0, 0, -1, nil
	case writing:
		return s.h.dev, s.h.ino, s.h.size, nil // filled by the caller, once the log is cut
	case reading:
		want := int(s.h.want)
		if want < 0 || b+want > rawSize {
			return 0, 0, 0, fmt.Errorf("slot %s is damaged", s.path)
		}
		n := min(want, sentinelSize)
		if string(s.raw[b:b+n]) != string(s.h.sentinel[:n]) {
			b += want
		}
		s.set(filled, a, b)
		return 0, 0, -1, nil
	}
	return 0, 0, 0, fmt.Errorf("slot %s is free", s.path)
}

func (s *slot) remove() {
	_ = unix.Munmap(s.mem)
	_ = os.Remove(s.path)
}

// Pool owns the slots and write buffers of all copiers. It is made by [NewPool].
type Pool struct {
	dir      string
	sentinel [sentinelSize]byte

	mu    sync.Mutex
	next  int
	slots []*slot
	outs  [][]byte
	trim  *time.Timer

	gate gate.Gate // copiers are inside while they read and write
}

// Freeze has all copiers stop where the slots say everything, which takes no
// longer than one write of a log; false: longer than limit, and they go on.
// Until [Pool.Thaw] containers write into their pipes.
func (p *Pool) Freeze(limit time.Duration) bool { return p.gate.Shut(limit) }

// Thaw lets all copiers go on.
func (p *Pool) Thaw() { p.gate.Open() }

// NewPool makes dir when it is missing. Call [Pool.Recover] next.
func NewPool(dir string) (*Pool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the staging directory: %w", err)
	}
	p := &Pool{dir: dir}
	_, _ = rand.Read(p.sentinel[:])         // never fails
	copy(p.sentinel[:], "\xff\xff\xff\xff") // as short reads see no more of it: bytes that no text has
	p.trim = time.AfterFunc(keepFor, p.drop)
	return p, nil
}

// Close gives the unused buffers back. Slots in use stay as they are, for a successor.
func (p *Pool) Close() {
	p.trim.Stop()
	p.drop()
}

// drop gives all unused buffers back to the kernel.
func (p *Pool) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.slots {
		s.remove()
	}
	for _, b := range p.outs {
		_ = unix.Munmap(b)
	}
	p.slots, p.outs = nil, nil
}

// get returns a slot in state filled(0,0).
func (p *Pool) get(id string, stream uint64) (*slot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var s *slot
	if n := len(p.slots); n > 0 {
		s = p.slots[n-1]
		p.slots = p.slots[:n-1]
	} else {
		p.next++
		var err error
		if s, err = openSlot(filepath.Join(p.dir, strconv.Itoa(p.next)), true); err != nil {
			return nil, err
		}
	}
	s.h.magic = Layout
	s.h.stream = stream
	s.h.nameLen = uint64(copy(s.h.name[:], id))
	s.h.last = 0
	s.gap = gap{}
	s.set(filled, 0, 0)
	return s, nil
}

func (p *Pool) put(s *slot) {
	s.gap = gap{}
	s.set(free, 0, 0)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.slots) >= keepFree {
		s.remove()
		return
	}
	p.slots = append(p.slots, s)
	p.trim.Reset(keepFor)
}

// getOut returns a buffer of outSize.
func (p *Pool) getOut() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.outs); n > 0 {
		b := p.outs[n-1]
		p.outs = p.outs[:n-1]
		return b, nil
	}
	b, err := unix.Mmap(-1, 0, outSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("getting a write buffer: %w", err)
	}
	return b, nil
}

func (p *Pool) putOut(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.outs) >= keepFree {
		_ = unix.Munmap(b)
		return
	}
	p.outs = append(p.outs, b)
	p.trim.Reset(keepFor)
}

// Leftover is what a killed process had read of a stream and not written.
type Leftover struct {
	slot *slot
	cut  cut // the write that was on
}

// InWrite says whether a predecessor was in the middle of writing it to the log.
func (l *Leftover) InWrite() bool { return l != nil && l.cut.size >= 0 }

// cut says to what length the file of an unfinished write is to be cut; size < 0 for none.
type cut struct {
	dev, ino uint64
	size     int64
}

// Key names a stream of a container.
type Key struct{ ID, Stream string }

// Recover takes over the slots that a predecessor left. It must be called
// before the first copier starts. Slots that are damaged are removed; damaged
// says which. After an error, which says nothing of a slot, all are as they
// were. A leftover that has no taker is to be given to Discard.
func (p *Pool) Recover() (found map[Key]*Leftover, damaged []error, err error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("recovering log output: %w", err)
	}
	found = make(map[Key]*Leftover)
	for _, e := range entries {
		path := filepath.Join(p.dir, e.Name())
		if n, err := strconv.Atoi(e.Name()); err == nil {
			p.next = max(p.next, n)
		}
		s, err := openSlot(path, false)
		if short(err) {
			return nil, nil, fmt.Errorf("recovering log output: %w", err)
		}
		if err != nil {
			damaged = append(damaged, err)
			_ = os.Remove(path)
			continue
		}
		if s.h.word.Load() == 0 { // free, or not yet in use
			s.remove()
			continue
		}
		l := &Leftover{slot: s}
		if l.cut.dev, l.cut.ino, l.cut.size, err = s.settle(); err != nil {
			damaged = append(damaged, err)
			s.remove()
			continue
		}
		key := Key{string(s.h.name[:s.h.nameLen]), streams[s.h.stream&1]}
		if _, twice := found[key]; twice {
			damaged = append(damaged, fmt.Errorf("slot %s is a second one of %v", path, key))
			s.remove()
			continue
		}
		found[key] = l
	}
	return found, damaged, nil
}

// short says whether err is of the machine's state and not of a file.
func short(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Discard drops a leftover that no copier takes.
func (l *Leftover) Discard() { l.slot.remove() }

var streams = [2]string{"stdout", "stderr"}
