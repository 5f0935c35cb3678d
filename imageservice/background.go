package imageservice

import (
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/gantry-cri/gantry/imageservice/internal/tree"
)

// reclaimLoop deletes what nobody needs any more, until Close. What it does
// not get to is deleted after the next start.
func (s *Service) reclaimLoop() {
	var later <-chan time.Time // when something kept for a retry is due
	for {
		select {
		case <-s.stop.Done():
			return
		case <-s.reclaim:
		case <-later:
		}
		next, err := s.reap(time.Now())
		if err != nil {
			s.log.Error(err, "Unused layers not removed; they are at the next start")
		}
		if later = nil; next > 0 {
			later = time.After(next)
		}
		s.emptyTrash()
	}
}

// afterPulls gives the memory that pulls have used back to the kernel when the
// last one has ended: tens of megabytes of buffers and dictionaries that the
// collector would keep for two minutes, and the allocator for good.
func (s *Service) afterPulls() {
	for {
		select {
		case <-s.stop.Done():
			return
		case <-s.pulled:
		}
		if len(s.downloads.Keys()) == 0 {
			runtime.GC() // pools give up what they hold in the second collection
			debug.FreeOSMemory()
		}
	}
}

func (s *Service) emptyTrash() {
	trash, err := os.Open(s.path(trashDir))
	if err != nil {
		s.log.Error(err, "Trash not emptied; it is at the next start")
		return
	}
	defer trash.Close()
	names, err := trash.Readdirnames(-1)
	if err != nil {
		s.log.Error(err, "Trash not emptied; it is at the next start")
	}
	for _, name := range names {
		if s.stop.Err() != nil {
			return
		}
		if err := tree.Remove(int(trash.Fd()), name); err != nil {
			s.log.Error(err, "Deleted files stay until the next start", "directory", s.path(trashDir, name))
		}
	}
}

const (
	// measureEvery is how old figures of a container may get while somebody
	// asks for them.
	measureEvery = 10 * time.Second
	// measureFor is how long after the last question figures are kept fresh.
	measureFor = time.Minute
)

// Usage answers from a cache that is refreshed in the background; false when
// the container has no root file system or was not measured yet.
func (s *Service) Usage(containerID string) (Usage, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[containerID]
	if c == nil || !c.mounted {
		return Usage{}, false
	}
	c.asked = time.Now()
	if c.asked.Sub(c.usage.At) > measureEvery {
		wake(s.measure)
	}
	return c.usage, !c.usage.At.IsZero()
}

// measureLoop walks the writable layers that somebody asked for, until Close.
func (s *Service) measureLoop() {
	tick := time.NewTicker(measureEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.stop.Done():
			return
		case <-s.measure:
		case <-tick.C:
		}
		s.measureAll(time.Now())
	}
}

func (s *Service) measureAll(now time.Time) {
	s.mu.RLock()
	due := make(map[string]*container)
	for id, c := range s.containers {
		if c.mounted && now.Sub(c.asked) < measureFor && now.Sub(c.usage.At) >= measureEvery/2 {
			due[id] = c
		}
	}
	s.mu.RUnlock()
	for id, c := range due {
		bytes, inodes, err := tree.Usage(s.stop, s.path(containersDir, id, "upper"))
		if err != nil {
			continue // unmounted meanwhile, or Close; the old figures stay
		}
		s.mu.Lock()
		c.usage = Usage{Bytes: bytes, Inodes: inodes, At: time.Now()}
		s.mu.Unlock()
	}
}
