package crash

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/killpoint"
)

// askAgain makes the request again as its caller does.
func (s *subject) askAgain(o operation) {
	s.t.Helper()
	again := o.again
	if again == nil {
		again = o.do
	}
	s.must("asking again", again(s))
}

// do makes the request while a process is traced.
func (s *subject) do(o operation, pid int, at killpoint.Point) (report killpoint.Report, answer error) {
	s.t.Helper()
	trace, err := killpoint.Attach(pid, at)
	s.must("tracing", err)
	answer = o.do(s)
	for end := time.Now().Add(5 * time.Second); answer == nil && killpoint.Alive(pid) && !s.quiet() && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond) // what goes on behind an answer
	}
	report, err = trace.End()
	s.must("tracing", err)
	if !report.Killed {
		s.must(o.name, answer)
	}
	return report, answer
}

// die has the daemon die, and starts it again.
func (s *subject) die(o operation, p point, first, second *killpoint.Report) (answer error) {
	s.t.Helper()
	supervisor := s.supervisor()
	if *first, answer = s.do(o, s.PID(), p.first); !first.Killed {
		return answer
	}
	if p.both {
		s.must("killing the supervisor", unix.Kill(supervisor, unix.SIGKILL))
	}
	if answer != nil && status.Code(answer) != codes.Unavailable {
		s.t.Errorf("the client of the dead daemon got %v", answer)
	}
	s.must("waiting for the daemon", s.Kill())
	s.tellSibling()
	var err error
	if p.again.N > 0 {
		*second, err = s.startTraced(p.again)
	} else {
		err = s.StartDaemon(context.Background())
	}
	s.must("starting the daemon", err)
	return answer
}

// dieAtSupervisor has the supervisor die, whose place the daemon has another one take.
func (s *subject) dieAtSupervisor(o operation, p point, first *killpoint.Report) (answer error) {
	s.t.Helper()
	before := s.supervisor()
	if *first, answer = s.do(o, before, p.first); !first.Killed {
		return answer
	}
	s.tellSibling()
	s.eventually("another supervisor is there", func() bool {
		pids := s.SupervisorPIDs()
		return len(pids) == 1 && pids[0] != before
	})
	for _, c := range []*container{&s.ctr, &s.sibling} {
		s.eventually("it is known that "+c.config.Metadata.Name+" has ended", func() bool {
			status, pid := s.status(c)
			return status.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || killpoint.Alive(pid)
		})
	}
	return answer
}

// supervisor is its process id.
func (w *world) supervisor() int {
	w.t.Helper()
	pids := w.SupervisorPIDs()
	if len(pids) != 1 {
		w.t.Fatalf("supervisors: %v", pids)
	}
	return pids[0]
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
