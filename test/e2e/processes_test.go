package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A daemon and a supervisor that may start no process and no thread refuse what needs one and say so, until the Go
// runtime ends them because it needs a thread, which may be at once or never. So both are killed afterwards: when they
// are started again with the limit gone, all works and nothing is lost.
func TestNoMoreProcesses(t *testing.T) {
	n := newNode(t)
	group := n.pidsCgroup()
	p := n.runPod("pod")
	c := p.run("c", forever)
	pid := c.hostPID()
	try := func(a *attempt, spare int) { // processes and threads, of all that there are
		t.Helper()
		for _, pid := range append(n.SupervisorPIDs(), n.PID()) {
			group.write("cgroup.procs", pid)
		}
		group.write("pids.max", max(0, group.count()+spare))
		a.all()
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		for _, pid := range n.SupervisorPIDs() {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				t.Fatal(err)
			}
		}
		n.eventually("the supervisor has ended", func() bool { return len(n.SupervisorPIDs()) == 0 })
		t.Logf("%s: %d operations failed, %d did not", a.name, a.failed, a.worked)
		if err := n.StartDaemon(context.Background()); err != nil { // in the test's own cgroup
			t.Fatal(err)
		}
		a.again(pid)
	}
	none := &attempt{pod: p, c: c, name: "none"}
	none.tell = func(what string, err error) {
		if status.Code(err) != codes.Unavailable { // what a call gets when one of them ends
			t.Errorf("without any process: %s: %v", what, err)
		}
	}
	try(none, -1000)
	if none.failed == 0 {
		t.Error("the limit was none")
	}
	// With some, OCI runtimes begin and end anywhere within, with any error.
	few := &attempt{pod: p, c: c, name: "few"}
	few.tell = func(what string, err error) { t.Logf("with few processes: %s: %v", what, err) }
	try(few, 4)
	if q, err := filepath.Glob(filepath.Join(n.Dir, "root", "quarantine", "*")); err != nil || len(q) > 0 {
		t.Errorf("set aside: %v, %v", q, err)
	}
}

// pidsCgroup is one whose processes and threads are limited in number.
type pidsCgroup struct {
	t   testing.TB
	dir string
}

func (n *node) pidsCgroup() *pidsCgroup {
	n.t.Helper()
	root := "/sys/fs/cgroup/pids"
	if cgroup2() {
		root = "/sys/fs/cgroup"
	}
	g := &pidsCgroup{n.t, filepath.Join(root, "gantry-pids-"+filepath.Base(n.Dir))}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		n.eventually("the cgroup with a limit is empty and gone", func() bool {
			for _, pid := range strings.Fields(read(n.t, filepath.Join(g.dir, "cgroup.procs"))) { // which end later
				err := os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(pid), 0)
				if err != nil && !errors.Is(err, unix.ESRCH) {
					n.t.Fatal(err)
				}
			}
			err := os.Remove(g.dir)
			if err != nil && !errors.Is(err, unix.EBUSY) {
				n.t.Fatal(err)
			}
			return err == nil
		})
	})
	if !exists(filepath.Join(g.dir, "pids.max")) {
		n.t.Skipf("the controller pids is not there for children of %s", root)
	}
	return g
}

func (g *pidsCgroup) write(file string, value int) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, file), []byte(strconv.Itoa(value)), 0); err != nil {
		g.t.Fatal(err)
	}
}

// count counts threads, as the controller does.
func (g *pidsCgroup) count() int {
	g.t.Helper()
	count, err := strconv.Atoi(strings.TrimSpace(read(g.t, filepath.Join(g.dir, "pids.current"))))
	if err != nil {
		g.t.Fatal(err)
	}
	return count
}
