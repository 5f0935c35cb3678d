package crash

import (
	"context"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/audit"
	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/killpoint"
)

// sampleTime is how long a sample takes.
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

	killed, killedAgain, killedBoth, killedSupervisor int

	failures int
	spoilt   bool // by a failure
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
// Every other one is of a daemon that has just been started, and one in four takes the supervisor with it. Then all those
// of the supervisor, before and after.
func (m *matrix) all() {
	began, chosen := time.Now(), chosen()
	for _, o := range chosen {
		points, opBegan := m.killed, time.Now()
		for n := 1; ; n++ {
			before, after := point{operation: o.name, first: killpoint.Point{N: n}}, point{operation: o.name, first: killpoint.Point{N: n, After: true}}
			before.cold, after.cold = n%2 == 0, n%2 == 1
			report := m.run(o, before)
			if !report.Killed {
				break
			}
			if report.GoesOn() {
				m.run(o, after)
				before.again = m.drawAgain()
				m.run(o, before)
			}
			after.again, after.both = m.drawAgain(), n%2 == 0 && !o.alone
			m.run(o, after)
		}
		daemon := m.killed - points
		for n := 1; ; n++ {
			p := point{supervisor: true, operation: o.name, first: killpoint.Point{N: n}}
			report := m.run(o, p)
			if !report.Killed {
				break
			}
			if p.first.After = true; report.GoesOn() {
				m.run(o, p)
			}
		}
		m.t.Logf("%s: %d deaths of the daemon and %d of the supervisor in %.0f s", o.name, daemon, m.killed-points-daemon, time.Since(opBegan).Seconds())
	}
	m.t.Logf("%d deaths in %d operations, %d of the supervisor with the daemon and %d of it alone, and %d of the daemon in the start after one: %.0f s",
		m.killed, len(chosen), m.killedBoth, m.killedSupervisor, m.killedAgain, time.Since(began).Seconds())
}

// chosen are the operations that GANTRY_CRASH_ALL matches, a regular expression of whole names; 1 is all of them.
func chosen() (list []operation) {
	all := operations()
	only := os.Getenv("GANTRY_CRASH_ALL")
	if only == "1" {
		return all
	}
	match := regexp.MustCompile("^(?:" + only + ")$")
	return slices.DeleteFunc(all, func(o operation) bool { return !match.MatchString(o.name) })
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

// firstGuess is of the changes that an operation makes.
const firstGuess = 32

// sample runs points for a while. How many changes an operation makes is guessed, and known as soon as one is survived.
func (m *matrix) sample() {
	type kind struct {
		operation  string
		supervisor bool
	}
	guesses := map[kind]int{}
	all := operations()
	for end := time.Now().Add(sampleTime); time.Now().Before(end) && !m.t.Failed(); {
		o := all[m.random.IntN(len(all))]
		p := point{operation: o.name, cold: m.random.IntN(2) == 0, first: killpoint.Point{After: m.random.IntN(2) == 0}}
		switch m.random.IntN(6) {
		case 0, 1:
			p.again = m.drawAgain()
		case 2:
			p.both = !o.alone && !o.start
		case 3:
			p.supervisor = !o.start
		}
		of := kind{o.name, p.supervisor}
		guess, known := guesses[of]
		switch {
		case !known:
			guess = firstGuess
		case guess == 0:
			continue // it makes none
		}
		p.first.N = 1 + m.random.IntN(guess)
		switch report := m.run(o, p); {
		case !report.Killed:
			guess = len(report.Changes)
		case p.first.N > guess/2:
			guess *= 2
		}
		guesses[of] = guess
	}
	m.t.Logf("%d deaths, %d of them of the supervisor too, %d of it alone, and %d in the start after one, which makes %d changes",
		m.killed+m.killedAgain, m.killedBoth, m.killedSupervisor, m.killedAgain, m.starts)
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
		if p.both {
			m.killedBoth++
		}
		if p.supervisor {
			m.killedSupervisor++
		}
	}
	if again.Killed {
		m.killedAgain++
	}
	return report
}

// live brings a subject to where the operation begins, has a program die in it, and requires that all is well.
func (w *world) live(o operation, p point, first, second *killpoint.Report) {
	w.t.Helper()
	s := w.subject("subject", o)
	s.bring(o.from)
	if o.prepare != nil {
		o.prepare(s)
	}
	if p.cold {
		w.must("ending the daemon", w.Kill())
		w.must("starting the daemon", w.StartDaemon(context.Background()))
	}
	s.unknown = p.supervisor || p.both
	var answer error
	switch {
	case o.start:
		w.must("ending the daemon", w.Kill())
		s.tellSibling()
		var err error
		*first, err = w.startTraced(p.first)
		w.must("starting the daemon", err)
	case p.supervisor:
		answer = s.dieAtSupervisor(o, p, first)
	default:
		answer = s.die(o, p, first, second)
	}
	books := func() { w.must("comparing the books", audit.Books(w.context(), w.Instance)) }
	if first.Killed {
		o.found(s)
		s.checkSibling(o.kills)
		if !p.supervisor { // nobody but the caller brings to its end what a daemon was told, and lives to remember
			books()
		}
	}
	if first.Killed && answer != nil && (p.supervisor || !p.first.After) {
		s.askAgain(o)
		answer = nil
		books()
	}
	if answer == nil {
		o.done(s)
	}
	s.mustRemove()
	w.must("removing the image", s.removePulled())
	w.rest()
}
