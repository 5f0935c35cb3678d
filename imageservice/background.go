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
		if err := tree.Remove(s.stop, int(trash.Fd()), name); err != nil && s.stop.Err() == nil {
			s.log.Error(err, "Deleted files stay until the next start", "directory", s.path(trashDir, name))
		}
	}
}
