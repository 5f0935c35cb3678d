package gate

import (
	"sync"
	"time"
)

// Gate is passed by all who change something: Enter or Join before, Leave
// after. Shut returns when nobody is inside, and keeps everybody out. Its zero
// value is open. A pass costs two uncontended locks.
type Gate struct {
	mu     sync.Mutex
	inside int
	state  state
	moved  chan struct{} // closed with the next change of state; nil while open
	empty  chan struct{} // closed when the last has left while closing
}

type state int

const (
	open state = iota
	closing
	shut
)

// Enter waits until the gate is open.
func (g *Gate) Enter() { g.pass(open) }

// Join enters a gate that is being shut too, as somebody inside may wait for
// the caller. It waits while it is shut.
func (g *Gate) Join() { g.pass(closing) }

func (g *Gate) pass(latest state) {
	g.mu.Lock()
	for g.state > latest {
		moved := g.moved
		g.mu.Unlock()
		<-moved
		g.mu.Lock()
	}
	g.inside++
	g.mu.Unlock()
}

// Leave is the end of an Enter or a Join.
func (g *Gate) Leave() {
	g.mu.Lock()
	if g.inside--; g.inside == 0 && g.state == closing {
		g.state = shut
		close(g.empty)
	}
	g.mu.Unlock()
}

// Shut keeps everybody out and waits until all have left. If that takes longer
// than limit it opens the gate again and returns false. One calls it at a time.
func (g *Gate) Shut(limit time.Duration) bool {
	g.mu.Lock()
	g.moved, g.empty = make(chan struct{}), make(chan struct{})
	if g.state = closing; g.inside == 0 {
		g.state = shut
		close(g.empty)
	}
	empty := g.empty
	g.mu.Unlock()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-empty:
		return true
	case <-timer.C:
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == shut { // just now
		return true
	}
	g.reopen()
	return false
}

// Open lets everybody in again after a Shut.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reopen()
}

func (g *Gate) reopen() {
	g.state = open
	close(g.moved)
}
