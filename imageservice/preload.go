package imageservice

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// preloadFile in Root remembers what was loaded from Config.PreloadDir. It is
// only a reason not to load again: a lost or damaged one costs time.
const preloadFile = "preload.json"

// preloaded is an archive as it was when its images were loaded.
type preloaded struct {
	Size    int64     `json:"size"`
	ModTime time.Time `json:"modTime"`
	Images  []string  `json:"images"`
}

// archiveSuffixes are those of the files that are preloaded.
var archiveSuffixes = []string{".tar", ".tar.gz", ".tgz", ".tar.zst"}

// preload loads the archives of Config.PreloadDir in the order of their names,
// until Close. An archive that was loaded by an earlier start counts as done
// while it is unchanged and its images are here.
func (s *Service) preload() {
	if s.cfg.PreloadDir == "" {
		return
	}
	entries, err := os.ReadDir(s.cfg.PreloadDir) // sorted
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Error(err, "Images not preloaded", "directory", s.cfg.PreloadDir)
		}
		return
	}
	before := s.readPreloaded()
	now := make(map[string]preloaded)
	for _, e := range entries {
		name := e.Name()
		if !slices.ContainsFunc(archiveSuffixes, func(suffix string) bool { return strings.HasSuffix(name, suffix) }) {
			continue
		}
		done, err := s.preloadArchive(filepath.Join(s.cfg.PreloadDir, name), before[name])
		if s.stop.Err() != nil {
			return // what is left of it is loaded by the next start
		}
		if err != nil {
			s.log.Error(err, "Images not preloaded; they are at the next start", "file", name)
			continue
		}
		now[name] = done
	}
	if maps.EqualFunc(before, now, preloaded.equal) {
		return
	}
	if err := s.writePreloaded(now); err != nil {
		s.log.Error(err, "What was preloaded is not remembered; the next start loads it again")
	}
}

func (p preloaded) equal(q preloaded) bool {
	return p.Size == q.Size && p.ModTime.Equal(q.ModTime) && slices.Equal(p.Images, q.Images)
}

// preloadArchive loads an archive unless that was done.
func (s *Service) preloadArchive(path string, before preloaded) (preloaded, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // it may be a FIFO
	if err != nil {
		return preloaded{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return preloaded{}, err
	}
	if !info.Mode().IsRegular() {
		return preloaded{}, fmt.Errorf("%s is not a regular file but %v", path, info.Mode().Type())
	}
	now := preloaded{Size: info.Size(), ModTime: info.ModTime(), Images: before.Images}
	if now.equal(before) && s.haveAll(before.Images) {
		return before, nil
	}
	now.Images = nil
	err = s.Load(s.stop, file, func(id string, _ []string) { now.Images = append(now.Images, id) })
	return now, err
}

func (s *Service) haveAll(ids []string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(ids) > 0 && !slices.ContainsFunc(ids, func(id string) bool { return s.images[id] == nil })
}

func (s *Service) readPreloaded() map[string]preloaded {
	m := make(map[string]preloaded)
	body, err := os.ReadFile(s.path(preloadFile))
	if err == nil {
		err = json.Unmarshal(body, &m)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error(err, "What was preloaded before is not known; it is loaded again")
		clear(m)
	}
	return m
}

func (s *Service) writePreloaded(m map[string]preloaded) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	next := s.path(tmpDir, s.unique())
	if err := os.WriteFile(next, body, 0o600); err != nil {
		return err
	}
	return os.Rename(next, s.path(preloadFile))
}
