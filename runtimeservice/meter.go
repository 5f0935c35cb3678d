package runtimeservice

import (
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

// meter reads one cgroup, a container's or a pod's, whose files it keeps open
// from the first reading until close. The zero value is ready.
type meter struct {
	mu     sync.Mutex
	group  *cgroup.Group // guarded by mu, as all below
	last   cpuSample
	closed bool
}

// cpuSample is an earlier reading, from which the rate since then is told.
type cpuSample struct {
	at    time.Time
	nanos uint64
	rate  *uint64 // nanoseconds of CPU a second between the last two readings
}

// minSampleGap keeps the rate from being told of too short a time to mean anything.
const minSampleGap = 100 * time.Millisecond

// reading is what a cgroup has used, and its CPU rate since an earlier
// reading; nil at the first.
type reading struct {
	cgroup.Stats
	rate *uint64
}

// read reads the cgroup at path, which is the same in every call. One that is
// gone, or a closed meter, is errdefs.ErrFailedPrecondition. It costs one
// system call for each file (see [cgroup.Group.Stats]) and no allocation worth
// the name once the files are open.
func (m *meter) read(path string) (reading, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.readLocked(path)
	if errdefs.IsNotFound(err) {
		return reading{}, fmt.Errorf("cgroup %s is gone: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return reading{}, err
	}
	if gap := s.At.Sub(m.last.at); gap >= minSampleGap {
		next := cpuSample{at: s.At, nanos: s.CPUNanos}
		if !m.last.at.IsZero() {
			rate := uint64(float64(s.CPUNanos-min(s.CPUNanos, m.last.nanos)) / gap.Seconds())
			next.rate = &rate
		}
		m.last = next
	}
	return reading{s, m.last.rate}, nil
}

func (m *meter) readLocked(path string) (cgroup.Stats, error) {
	if m.closed {
		return cgroup.Stats{}, errdefs.ErrNotFound
	}
	if m.group != nil {
		s, err := m.group.Stats()
		if !errdefs.IsNotFound(err) {
			return s, err
		}
		// Removed, and perhaps made again, as the kubelet does with a pod's.
		if err := m.group.Close(); err != nil {
			return s, err
		}
		m.group, m.last = nil, cpuSample{}
	}
	g, err := cgroup.Open(path)
	if err != nil {
		return cgroup.Stats{}, err
	}
	m.group = g
	return g.Stats()
}

// close closes the files for good: what was measured does not run again.
func (m *meter) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	if m.group == nil {
		return nil
	}
	err := m.group.Close()
	m.group = nil
	return err
}
