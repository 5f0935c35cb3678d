package crash

import (
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/killpoint"
)

// sampleTime is how long a sample takes, with the count of all points, which takes a quarter of it.
const sampleTime = 35 * time.Second

// The daemon is killed at a change that it makes in an RPC, and started again: see doc.go. By itself the test takes a
// sample of the points; GANTRY_CRASH_SEED replays it, GANTRY_CRASH_AT runs one point, GANTRY_CRASH_ALL=1 all of them.
func TestCrashPoints(t *testing.T) {
	harness.Require(t)
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("GANTRY_CRASH_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	m := &matrix{t: t, world: newWorld(t), random: rand.New(rand.NewPCG(seed, 0))}
	m.starts = m.countStart()
	switch at := os.Getenv("GANTRY_CRASH_AT"); {
	case at != "":
		p, err := parsePoint(at)
		if err != nil {
			t.Fatal(err)
		}
		m.run(m.operation(p.operation), p)
	case os.Getenv("GANTRY_CRASH_ALL") != "":
		t.Logf("GANTRY_CRASH_SEED=%d", seed) // of the second deaths
		m.all()
	default:
		t.Logf("GANTRY_CRASH_SEED=%d", seed)
		m.sample()
	}
}

type matrix struct {
	*world
	t      *testing.T
	random *rand.Rand
	starts int // changes that a start makes

	killed, killedAgain int
	failures            int
	spoilt              bool // by a failure
}

func (m *matrix) operation(name string) operation {
	all := operations()
	i := slices.IndexFunc(all, func(o operation) bool { return o.name == name })
	if i < 0 {
		m.t.Fatalf("no operation %q", name)
	}
	return all[i]
}

// countStart counts the changes of a start that has nothing to repair.
func (m *matrix) countStart() int {
	m.t.Helper()
	m.must("ending the daemon", m.Kill())
	report, err := m.startTraced(killpoint.Point{})
	m.must("starting the daemon", err)
	return len(report.Changes)
}

// startTraced starts the daemon; one that is killed meanwhile is started once more.
func (w *world) startTraced(at killpoint.Point) (report killpoint.Report, err error) {
	var trace *killpoint.Trace
	var terr error
	w.Started = func(pid int) { trace, terr = killpoint.Attach(pid, at) }
	err = w.StartDaemon(context.Background())
	w.Started = nil
	w.must("tracing the daemon", terr)
	report, terr = trace.End()
	w.must("tracing the daemon", terr)
	if report.Killed {
		w.must("waiting for the daemon", w.Kill())
		err = w.StartDaemon(context.Background())
	}
	return report, err
}

// all runs every point: those before a change with one death, those after it with a second one somewhere in the start;
// and with both where something goes on while the daemon is dead (see killpoint.Report.GoesOn). Else to die after a
// change is what it is to die before the next.
func (m *matrix) all() {
	began := time.Now()
	for _, o := range operations() {
		points, opBegan := m.killed, time.Now()
		for n := 1; ; n++ {
			before, after := point{operation: o.name, first: killpoint.Point{N: n}}, point{operation: o.name, first: killpoint.Point{N: n, After: true}}
			report := m.run(o, before)
			if !report.Killed {
				break
			}
			if report.GoesOn() {
				m.run(o, after)
				before.again = m.drawAgain()
				m.run(o, before)
			}
			after.again = m.drawAgain()
			m.run(o, after)
		}
		m.t.Logf("%s: %d deaths in %.0f s", o.name, m.killed-points, time.Since(opBegan).Seconds())
	}
	m.t.Logf("%d deaths in %d operations, and %d in the start after one: %.0f s", m.killed, len(operations()), m.killedAgain, time.Since(began).Seconds())
}

// mostSpoilt is how many failures end a run.
const mostSpoilt = 5

// renew makes another world when a failure has spoilt this one, which would be found by each point that follows.
func (m *matrix) renew() {
	if !m.spoilt {
		return
	}
	if m.failures++; m.failures == mostSpoilt {
		m.t.FailNow()
	}
	m.must("ending the daemon", m.Kill())
	m.spoilt, m.world = false, newWorld(m.t)
}

func (m *matrix) drawAgain() killpoint.Point {
	return killpoint.Point{N: 1 + m.random.IntN(m.starts*5/4), After: m.random.IntN(2) == 0}
}

// sample counts the points and runs some.
func (m *matrix) sample() {
	end := time.Now().Add(sampleTime)
	all, counts, points := operations(), []int{}, 0
	for _, o := range all {
		var report, again killpoint.Report
		m.live(o, point{operation: o.name}, &report, &again)
		counts = append(counts, len(report.Changes))
		points += 2 * len(report.Changes)
		if m.t.Failed() {
			m.t.Fatalf("%s, with nobody killed", o.name)
		}
	}
	for first := true; (first || time.Now().Before(end)) && !m.t.Failed(); first = false {
		i := m.random.IntN(len(all))
		p := point{operation: all[i].name, first: killpoint.Point{N: 1 + m.random.IntN(counts[i]), After: m.random.IntN(2) == 0}}
		if m.random.IntN(2) == 0 {
			p.again = m.drawAgain()
		}
		m.run(all[i], p)
	}
	m.t.Logf("%d deaths, %d of them in the start after another, of %d points and %d changes of a start", m.killed+m.killedAgain, m.killedAgain, points, m.starts)
}

// run runs one point as a test of its own.
func (m *matrix) run(o operation, p point) killpoint.Report {
	m.renew()
	var report, again killpoint.Report
	ok := m.t.Run(p.String(), func(t *testing.T) {
		outer := m.world.t
		m.world.t = t
		defer func() { m.world.t = outer }()
		defer func() {
			if t.Failed() {
				t.Logf("GANTRY_CRASH_AT=%s; killed (%v) at %s, and in the start (%v) at %s", p, report.Killed, report.Last(), again.Killed, again.Last())
			}
		}()
		m.live(o, p, &report, &again)
	})
	m.spoilt = m.spoilt || !ok
	if report.Killed {
		m.killed++
	}
	if again.Killed {
		m.killedAgain++
	}
	return report
}

// live brings a subject to where the operation begins, has the daemon die in it, and requires that all is well.
func (w *world) live(o operation, p point, first, second *killpoint.Report) {
	w.t.Helper()
	s := w.subject("subject", o.change...)
	s.bring(o.from)
	if o.prepare != nil {
		o.prepare(s)
	}
	trace, err := killpoint.Attach(w.PID(), p.first)
	w.must("tracing the daemon", err)
	answer := o.do(s)
	for pid, end := w.PID(), time.Now().Add(5*time.Second); answer == nil && killpoint.Alive(pid) && !w.quiet() && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond) // what goes on behind an answer
	}
	*first, err = trace.End()
	w.must("tracing the daemon", err)
	if !first.Killed {
		w.must(o.name, answer)
	} else {
		if answer != nil && status.Code(answer) != codes.Unavailable {
			w.t.Errorf("the client of the dead daemon got %v", answer)
		}
		w.must("waiting for the daemon", w.Kill())
		s.tellSibling()
		if p.again.N > 0 {
			*second, err = w.startTraced(p.again)
		} else {
			err = w.StartDaemon(context.Background())
		}
		w.must("starting the daemon", err)
		o.found(s)
		s.checkSibling(o.kills)
	}
	if first.Killed && answer != nil && !p.first.After {
		again := o.again
		if again == nil {
			again = o.do
		}
		answer = again(s)
		w.must("asking again", answer)
	}
	if answer == nil {
		o.done(s)
	}
	s.mustRemove()
	w.must("removing the image", s.removePulled())
	w.rest()
}

// tellSibling has it end with a code of its own, if it has not ended.
func (s *subject) tellSibling() {
	s.t.Helper()
	if s.sibling.pid > 0 && killpoint.Alive(s.sibling.pid) {
		s.must("telling the sibling", unix.Kill(s.sibling.pid, unix.SIGUSR1))
		s.eventually("the sibling has ended", func() bool { return !killpoint.Alive(s.sibling.pid) })
	}
}

// checkSibling requires that it has ended with the code that it was told, or was killed with its pod.
func (s *subject) checkSibling(killed bool) {
	s.t.Helper()
	if s.sibling.pid == 0 {
		return
	}
	codes := []int32{exitTold}
	if killed {
		codes = append(codes, exitKilled)
		if got, _ := s.status(&s.sibling); got == nil {
			return
		}
	}
	s.eventually("the sibling is exited", func() bool {
		got, _ := s.status(&s.sibling)
		return got == nil || got.GetState().String() == "CONTAINER_EXITED"
	})
	s.wantExit(&s.sibling, false, codes...)
}
