package supervisor_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox"
)

// Children that keep the output open leave nothing in the daemon or the
// supervisor, whether the call has a timeout, none, or a client that leaves.
func TestExecBackgroundChildrenLeaveNothing(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	req := w.container("sleep", "1000")
	w.run(req)
	process := &specs.Process{Cwd: "/", Env: []string{"PATH=/bin"}, Args: []string{"sh", "-c", "sleep 1d & echo done"}}
	call := func(i int) {
		ctx, cancel := context.WithCancel(w.ctx())
		defer cancel()
		switch i % 5 {
		case 0:
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		case 1: // at any moment of the call
			time.AfterFunc(time.Duration(i)*time.Millisecond, cancel)
		}
		res, err := h.Exec(ctx, req.ID, process, sandbox.IDMap{})
		if i%5 == 1 && errors.Is(err, context.Canceled) {
			return
		}
		if err != nil || res.ExitCode != 0 || string(res.Stdout) != "done\n" {
			t.Errorf("call %d: %q, code %d, %v", i, res.Stdout, res.ExitCode, err)
		}
	}
	for i := range 10 {
		call(i)
	}
	var before string
	w.eventually("it is quiet", func() bool { last := before; before = w.resources(); return before == last })
	var next atomic.Int32
	var all sync.WaitGroup
	for range 25 {
		all.Go(func() {
			for i := int(next.Add(1)); i <= 200; i = int(next.Add(1)) {
				call(i)
			}
		})
	}
	all.Wait()
	var after string
	w.eventually("nothing is left", func() bool { after = w.resources(); return after == before })
	t.Logf("before %s; after %s", before, after)
	if files := execFiles(w, req.ID); len(files) != 0 {
		t.Errorf("files are left: %v", files)
	}
}

// A supervisor that has no descriptors left refuses; it never gives a process
// another's streams (CVE-2021-44717), and recovers.
func TestExecWithoutDescriptors(t *testing.T) {
	w := newWorld(t)
	req := w.container("sh", "-c", "sleep 1000")
	w.run(req)
	pid := w.supervisorPID()
	var old unix.Rlimit
	w.must(unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old))
	open := uint64(len(list("/proc/" + itoa(pid) + "/fd")))
	failed := 0
	for _, spare := range []uint64{2, 6, 9, 12, 16, 24} {
		w.must(unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: open + spare, Max: old.Max}, nil))
		var mu sync.Mutex
		var all sync.WaitGroup
		for i := range 12 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(w.ctx(), 5*time.Second)
				defer cancel()
				want := fmt.Sprintf("%d of %d\n", i, spare)
				out, code, err := w.exec(ctx, req.ID, "printf", want)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil:
					failed++
					if out != "" && out != want {
						t.Errorf("%q got %q and %v", want, out, err)
					}
				case out != want || code != 0:
					t.Errorf("%q got %q, code %d", want, out, code)
				}
			})
		}
		all.Wait()
	}
	w.must(unix.Prlimit(pid, unix.RLIMIT_NOFILE, &old, nil))
	if failed == 0 {
		t.Error("no call failed: the limits were none")
	}
	t.Logf("%d of 72 calls failed", failed)
	if out, code, err := w.exec(w.ctx(), req.ID, "echo", "again"); out != "again\n" || code != 0 || err != nil {
		t.Errorf("afterwards: %q, %d, %v", out, code, err)
	}
	if w.supervisorPID() != pid {
		t.Error("it is another supervisor")
	}
	if lines := w.logged(req); len(lines) != 0 {
		t.Errorf("the container's log has %v", lines)
	}
}

// exec in a container that is paused is an error and no wait.
func TestExecPaused(t *testing.T) {
	w := newWorld(t)
	req := w.container("sleep", "1000")
	pid := w.run(req)
	w.eventually("it is no OCI runtime any more", func() bool { // which, frozen while it executes sleep, never gets there
		cmdline, _ := os.ReadFile("/proc/" + itoa(pid) + "/cmdline")
		return strings.HasPrefix(string(cmdline), "sleep")
	})
	freeze := func(v1, v2 string) {
		w.Helper()
		for _, f := range []struct{ name, value string }{{"freezer.state", v1}, {"cgroup.freeze", v2}} {
			for _, procs := range req.CgroupProcs {
				file := filepath.Join(filepath.Dir(procs), f.name)
				if _, err := os.Stat(file); err == nil {
					w.must(os.WriteFile(file, []byte(f.value), 0))
					w.eventually("it is so", func() bool {
						now, _ := os.ReadFile(file)
						return strings.TrimSpace(string(now)) == f.value
					})
					return // frozen by both, it would not be by the first in runc's eyes
				}
			}
		}
		t.Fatal("the container has no freezer")
	}
	freeze("FROZEN", "1")
	ctx, cancel := context.WithTimeout(w.ctx(), limit)
	defer cancel()
	_, _, err := w.exec(ctx, req.ID, "true")
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("paused: %v", err)
	}
	freeze("THAWED", "0")
	if _, code, err := w.exec(w.ctx(), req.ID, "true"); code != 0 || err != nil {
		t.Errorf("resumed: %d, %v", code, err)
	}
	_, _, err = w.exec(w.ctx(), "gone", "true")
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("no container: %v", err)
	}
}
