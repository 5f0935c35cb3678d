package imageservice

import (
	"context"
	"slices"
	"sync"
)

// slots lets so many layers be worked on at a time. Pulls take turns: an image
// of two hundred layers gets no second slot before an image of one layer, which
// asked after it, has got its first.
type slots struct {
	mu    sync.Mutex
	free  int
	lines []*line // of pulls that wait; the first is next
}

// line is what one pull waits for, in the order it asked.
type line struct {
	pull    string
	waiting []chan struct{}
}

// acquire waits for a slot, which the caller releases.
func (s *slots) acquire(ctx context.Context, pull string) error {
	s.mu.Lock()
	if s.free > 0 {
		s.free--
		s.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	i := slices.IndexFunc(s.lines, func(l *line) bool { return l.pull == pull })
	if i < 0 {
		i = len(s.lines)
		s.lines = append(s.lines, &line{pull: pull})
	}
	s.lines[i].waiting = append(s.lines[i].waiting, turn)
	s.mu.Unlock()

	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	if !s.leave(pull, turn) {
		s.release() // it was given at the same moment
	}
	return context.Cause(ctx)
}

// leave takes a waiter out; false when it has its slot already.
func (s *slots) leave(pull string, turn chan struct{}) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, l := range s.lines {
		if l.pull != pull {
			continue
		}
		n := len(l.waiting)
		l.waiting = slices.DeleteFunc(l.waiting, func(c chan struct{}) bool { return c == turn })
		if len(l.waiting) == 0 {
			s.lines = slices.Delete(s.lines, i, i+1)
		}
		return len(l.waiting) < n
	}
	return false
}

// release gives a slot to the pull whose turn it is.
func (s *slots) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lines) == 0 {
		s.free++
		return
	}
	l := s.lines[0]
	s.lines = s.lines[1:]
	turn := l.waiting[0]
	if l.waiting = l.waiting[1:]; len(l.waiting) > 0 {
		s.lines = append(s.lines, l) // behind all others
	}
	close(turn)
}
