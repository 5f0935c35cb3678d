package gate

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// While it is shut nobody is inside, however many come and go; all get in afterwards.
func TestShutFindsNobodyInside(t *testing.T) {
	var g Gate
	var inside, passes atomic.Int64
	var stop atomic.Bool
	var all sync.WaitGroup
	for i := range 4 {
		enter := g.Enter
		if i%2 == 0 {
			enter = g.Join
		}
		all.Go(func() {
			for !stop.Load() {
				enter()
				inside.Add(1)
				passes.Add(1)
				inside.Add(-1)
				g.Leave()
			}
		})
	}
	for range 50 {
		before := passes.Load()
		if !g.Shut(time.Minute) {
			t.Fatal("it was not shut")
		}
		if n := inside.Load(); n != 0 {
			t.Fatalf("%d are inside", n)
		}
		g.Open()
		for passes.Load() == before {
			time.Sleep(10 * time.Microsecond)
		}
	}
	stop.Store(true)
	all.Wait()
}

// Who is inside may wait for one who joins, and never for one who enters; if it takes too long all go on.
func TestShutGivesUp(t *testing.T) {
	var g Gate
	g.Enter()
	result := make(chan bool)
	go func() { result <- g.Shut(time.Minute) }()
	for closing := false; !closing; time.Sleep(10 * time.Microsecond) {
		g.mu.Lock()
		closing = g.state > open
		g.mu.Unlock()
	}
	entered := make(chan struct{})
	go func() { g.Enter(); close(entered) }()
	g.Join()
	g.Leave()
	g.Leave()
	if !<-result {
		t.Fatal("not shut, though all have left")
	}
	select {
	case <-entered:
		t.Fatal("somebody entered a shut gate")
	default:
	}
	g.Open()
	<-entered
	if g.Shut(time.Millisecond) {
		t.Fatal("shut with somebody inside")
	}
	g.Enter()
	g.Leave()
	g.Leave()
	if !g.Shut(time.Minute) {
		t.Fatal("not shut with nobody inside")
	}
}
