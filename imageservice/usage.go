package imageservice

import (
	"errors"
	"io/fs"
	"time"

	"github.com/gantry-cri/gantry/imageservice/internal/tree"
)

// What containers have written is measured by walking it, in the background,
// when somebody has asked for figures that are old by then: he gets the old
// ones, and the new ones when he asks again. Nobody asks, nothing runs.

const (
	// measureEvery is how old figures may get that somebody asks for.
	measureEvery = 10 * time.Second
	// measureRest and measurePause bound what measuring costs: a container is
	// left alone for that many times as long as its walk has taken, and after
	// a round over all of them nothing is walked for that many times as long
	// as the round has taken.
	measureRest, measurePause = 10, 2
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
	s.wantUsage(c, time.Now())
	return c.usage, !c.usage.At.IsZero()
}

// written is what all containers together have written, as Usage tells it of
// each. It is not complete before those that a restarted daemon has found have
// been measured, which Open begins.
func (s *Service) written() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	var sum Usage
	for _, c := range s.containers {
		s.wantUsage(c, now)
		sum.Bytes += c.usage.Bytes
		sum.Inodes += c.usage.Inodes
	}
	return sum
}

// wantUsage is called with mu held.
func (s *Service) wantUsage(c *container, now time.Time) {
	if now.Before(c.measureFrom) {
		return
	}
	c.measure = true
	wake(s.measure)
}

// measureLoop walks the writable layers that somebody asked for, until Close.
func (s *Service) measureLoop() {
	for {
		select {
		case <-s.stop.Done():
			return
		case <-s.measure:
		}
		start := time.Now()
		s.measureAsked()
		pause := time.NewTimer(measurePause * time.Since(start))
		select {
		case <-s.stop.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
	}
}

func (s *Service) measureAsked() {
	s.mu.Lock()
	asked := make(map[string]*container)
	for id, c := range s.containers {
		if c.measure {
			asked[id] = c
		}
	}
	s.mu.Unlock()
	for id, c := range asked {
		start := time.Now()
		bytes, inodes, err := tree.Usage(s.stop, s.path(containersDir, id, "upper"))
		took := time.Since(start)
		s.mu.Lock()
		if s.stop.Err() != nil {
			s.mu.Unlock()
			return
		}
		c.measure, c.measureFrom = false, start.Add(took+rest(took))
		if err == nil {
			c.usage = Usage{Bytes: bytes, Inodes: inodes, At: start}
		}
		s.mu.Unlock()
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // that one has been removed
			s.log.Error(err, "Disk usage of a container not measured, the last figures stay", "container", id)
		}
	}
}

// rest is how long a container is left alone after a walk that took so long.
func rest(took time.Duration) time.Duration { return max(measureEvery, measureRest*took) }
