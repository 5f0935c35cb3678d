package supervisor_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox"
)

// holds counts the descriptors of this process, the daemon, whose names end so.
func holds(name string) (n int) {
	for _, fd := range list("/proc/self/fd") {
		if target, _ := os.Readlink("/proc/self/fd/" + fd); strings.HasSuffix(target, name) {
			n++
		}
	}
	return n
}

// fdTarget is what a process has open under a number.
func fdTarget(t *testing.T, pid, fd int) string {
	t.Helper()
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// attachSoon attaches when the terminal has come back to a supervisor. A client that is refused before that looks
// attached for a moment, as its pipes are there.
func (w *world) attachSoon(h *sandbox.Host, id string) *client {
	w.Helper()
	w.eventually("the supervisor has the terminal", func() bool {
		dir := fmt.Sprintf("/proc/%d/fd/", w.supervisorPID())
		return slices.ContainsFunc(list(dir), func(fd string) bool {
			target, _ := os.Readlink(dir + fd)
			return strings.HasSuffix(target, "ptmx")
		})
	})
	return w.attach(h, id)
}

// A container's terminal outlives its supervisor, again and again: the daemon
// holds it, and the next supervisor goes on with it.
func TestTerminalOutlivesSupervisors(t *testing.T) {
	w := newWorld(t)
	w.watch()
	h := w.host()
	req := w.bundle(func(s *specs.Spec) {
		s.Process.Terminal = true
		s.Process.Args = []string{"sh", "-c", "stty -echo; echo up; while read x; do echo got $x; [ $x = bye ] && exit 7; done; echo lost"}
	})
	req.Stdin = true
	w.run(req)
	want := []string{"up\r"}
	for i := range 4 {
		w.eventually("the daemon holds the terminal", func() bool { return holds("ptmx") == 1 })
		c := w.attachSoon(h, req.ID)
		c.send(fmt.Sprintf("%d\n", i))
		c.sees(c.out, fmt.Sprintf("got %d\r\n", i))
		want = append(want, fmt.Sprintf("got %d\r", i))
		w.killSupervisor()
		c.wantEnd(errdefs.ErrUnavailable)
	}
	c := w.attachSoon(h, req.ID)
	c.send("bye\n")
	c.wantEnd(nil)
	w.wantAdopted(req.ID, 7)
	if got := texts(w.logged(req), "stdout"); !slices.Equal(got, append(want, "got bye\r")) {
		t.Errorf("log %q", got)
	}
	w.eventually("the daemon holds it no more", func() bool { return holds("ptmx") == 0 })
}

// Stdin that is to end with its first client does not end with a supervisor
// before, nor go on because somebody holds it. A daemon that comes later holds it too.
func TestStdinOnceOutlivesSupervisors(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	req := w.interactive("cat; echo end")
	req.StdinOnce = true
	stdin := fdTarget(t, w.run(req), 0)
	for range 3 {
		w.eventually("the daemon holds stdin", func() bool { return holds(stdin) == 1 })
		w.killSupervisor()
	}
	other := w.host()
	w.eventually("both daemons hold stdin", func() bool { return holds(stdin) == 2 })
	_ = h.Close()
	w.must(unix.Kill(w.supervisorPID(), unix.SIGKILL))
	c := w.attach(other, req.ID)
	c.send("text\n")
	c.sees(c.out, "text\n")
	_ = c.in.Close()
	c.wantEnd(nil)
	c.saw(c.out, "text\nend\n")
	if n := holds(stdin); n > 0 {
		t.Errorf("%d descriptors of stdin are left", n)
	}
}

// A stdin that has ended can be opened again, by its name too, and is at its end then as well.
func TestEndedStdinOpensAgain(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	req := w.interactive("cat; cat /dev/stdin; echo end")
	req.StdinOnce = true
	w.run(req)
	c := w.attach(h, req.ID)
	c.send("text\n")
	c.sees(c.out, "text\n")
	_ = c.in.Close()
	c.wantEnd(nil)
	c.saw(c.out, "text\nend\n")
}
