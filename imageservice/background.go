package imageservice

import (
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/gantry-cri/gantry/imageservice/internal/tree"
)

// reclaimLoop takes out of the books what nobody needs any more, until Close.
// What it does not get to is taken out after the next start.
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
	}
}

// trashLoop deletes what is in the trash, until Close. It is not reclaimLoop,
// for it may take long.
func (s *Service) trashLoop() {
	stuck := make(map[string]bool)
	for {
		select {
		case <-s.stop.Done():
			return
		case <-s.discarded:
		}
		s.emptyTrash(stuck)
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

// emptyTrash leaves out what is stuck, and adds what turns out to be.
func (s *Service) emptyTrash(stuck map[string]bool) {
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
		if stuck[name] {
			continue
		}
		if err := tree.Remove(s.stop, int(trash.Fd()), name); err != nil && s.stop.Err() == nil {
			stuck[name] = true
			s.log.Error(err, "Deleted files stay until the next start", "directory", s.path(trashDir, name))
		}
	}
}
