package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

// room keeps descriptors and memory for what must go on when there are no more
// of them: the end of containers, their logs, the answers to who asks. New work
// is refused before it is begun if it would take from what is kept.
//
// A descriptor is open, or promised to a piece of work that is under way and
// may have opened it already; so the sum of both is never too small. They are
// counted only when that sum, with all that has come since the last count, has
// reached the limit: far from it this costs no more than to ask for the limit.
type room struct {
	mu       sync.Mutex
	promised int   // descriptors
	used     int   // at most so many are open or promised
	memory   int64 // bytes of the requests of work under way
	spares   []int // descriptors of nothing, see lend
}

const (
	// maxKept is how many descriptors new work leaves to the rest, where the limit is not small.
	maxKept = 512
	// manySpares are for calls that come, and exits to be recorded, when no descriptor is left at all.
	manySpares = 16
	// maxRequests bounds the memory of the requests of work under way. They are twice and thrice in memory.
	maxRequests = 32 << 20

	// deleteNeeds is what a delete by the OCI runtime opens at most, at one time.
	deleteNeeds = 10
)

// needs is what a call that is new work opens at most beside its connection:
// for good, and while the OCI runtime runs.
var needs = map[string]int{"run": 28, "exec": 20, "attach": 10, "update": 14, "checkpoint": 14}

// take promises new work n descriptors and that many bytes, or refuses it with
// errdefs.ErrResourceExhausted. give, which may be called again, takes the promise
// back: at the latest at the work's end, at the earliest when it opens no more.
func (r *room) take(n int, bytes int64) (give func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.memory+bytes > maxRequests {
		return nil, fmt.Errorf("requests of %d MiB are under way, which is as much memory as the supervisor takes for them; try again: %w",
			r.memory>>20, errdefs.ErrResourceExhausted)
	}
	limit := nofile()
	kept := min(maxKept, limit/4)
	if !r.fits(n, limit-kept) {
		return nil, fmt.Errorf("supervisor (process %d) has %d of at most %d descriptors in use and keeps %d for what runs: raise its limit "+
			"(prlimit --pid=%d --nofile=..., and LimitNOFILE= of the daemon's unit for the next one) or remove containers: %w",
			os.Getpid(), r.used, limit, kept, os.Getpid(), errdefs.ErrResourceExhausted)
	}
	return r.promise(n, bytes), nil
}

// await promises n descriptors, of those that are kept too, when there are so many.
func (r *room) await(ctx context.Context, n int) (give func(), err error) {
	for {
		limit := nofile()
		r.mu.Lock()
		if r.fits(n, limit) {
			give = r.promise(n, 0)
		}
		used := r.used
		r.mu.Unlock()
		if give != nil {
			return give, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for descriptors, of which the supervisor (process %d) has %d of %d in use: %w: %w",
				os.Getpid(), used, limit, errdefs.ErrResourceExhausted, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// fits says whether there are n descriptors below limit. mu is held.
func (r *room) fits(n, limit int) bool {
	if r.used+n > limit || r.used == 0 {
		r.used = countDescriptors() + r.promised
	}
	return r.used+n <= limit
}

// connection notes that a call has come, which brings some.
func (r *room) connection() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used += 1 + wire.MaxFiles
}

// promise notes what fits. mu is held.
func (r *room) promise(n int, bytes int64) (give func()) {
	r.used += n
	r.promised += n
	r.memory += bytes
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.promised -= n // not used: what it leaves open is found by the next count
		r.memory -= bytes
	})
}

// nofile is this process' limit, which may be changed from outside.
func nofile() int {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return 0
	}
	return int(min(l.Cur, 1<<30))
}

// countDescriptors counts those that are open. Without one left to look, all are.
func countDescriptors() int {
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return nofile()
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nofile()
	}
	return len(names) - 1 // d
}

// fill makes the spare descriptors that are missing, as far as it can.
func (r *room) fill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.spares) < manySpares {
		// The lowest that is free; standard input is always open.
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return
		}
		r.spares = append(r.spares, fd)
	}
}

// lend gives a spare descriptor up, for the next that is opened, until fill;
// false: there is none.
func (r *room) lend() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.spares)
	if n == 0 {
		return false
	}
	_ = unix.Close(r.spares[n-1])
	r.spares = r.spares[:n-1]
	return true
}

// withSpare calls f, again with spare descriptors lent while it has too few.
func (r *room) withSpare(f func() error) error {
	err := f()
	for outOfDescriptors(err) && r.lend() {
		err = f()
	}
	r.fill()
	return err
}

func outOfDescriptors(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
}
