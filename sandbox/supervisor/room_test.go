package supervisor_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

// limitDescriptors gives the supervisor a limit until restore, or the test's end.
func (w *world) limitDescriptors(n uint64) (restore func()) {
	w.Helper()
	pid := w.supervisorPID()
	var old unix.Rlimit
	w.must(unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old))
	w.must(unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: old.Max}, nil))
	restore = func() {
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &old, nil); err != nil && !errors.Is(err, unix.ESRCH) {
			w.Error(err)
		}
	}
	w.Cleanup(restore)
	return restore
}

func (w *world) descriptors(pid int) (numbers []int) {
	for _, name := range list(fmt.Sprintf("/proc/%d/fd", pid)) {
		n, err := strconv.Atoi(name)
		w.must(err)
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return numbers
}

// refusedForRoom makes each call that is new work and wants it refused, with what to do about it.
func (w *world) refusedForRoom(req supervisor.RunRequest, running string) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.ctx(), limit)
	defer cancel()
	_, runErr := w.client.Run(ctx, req)
	_, _, execErr := w.exec(ctx, running, "true")
	r, wr, err := os.Pipe()
	w.must(err)
	defer r.Close()
	attachErr := w.client.Attach(ctx, supervisor.AttachRequest{ID: running, Stdout: wr, Attached: func(*os.File, bool) {}})
	for call, err := range map[string]error{"run": runErr, "exec": execErr, "attach": attachErr} {
		if !errors.Is(err, errdefs.ErrResourceExhausted) || !strings.Contains(err.Error(), "prlimit") {
			w.Errorf("%s without descriptors: %v", call, err)
		}
	}
	if ctx.Err() != nil {
		w.Error("they hung")
	}
}

// A supervisor near its limit of descriptors refuses new work before it is begun, and goes on with what there is.
func TestFewDescriptors(t *testing.T) {
	w := newWorld(t)
	w.watch()
	writes := w.container("sh", "-c", "while :; do echo line; usleep 1000; done")
	ends, killed, other := w.container("sleep", "1000"), w.container("sleep", "1000"), w.container("sleep", "1000")
	for _, req := range []supervisor.RunRequest{writes, ends, killed} {
		w.run(req)
	}
	w.eventually("it writes", func() bool {
		data, _ := os.ReadFile(filepath.Join(writes.LogDir, writes.LogPath))
		return len(data) > 0
	})
	restore := w.limitDescriptors(uint64(len(w.descriptors(w.supervisorPID()))) + 24)

	w.refusedForRoom(other, writes.ID)
	if _, err := os.Stat(filepath.Join(w.dir, "supervisor/containers", other.ID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something of the refused container is there: %v", err)
	}
	if got, err := w.client.List(w.ctx()); err != nil || len(got) != 3 {
		t.Errorf("list: %v, %v", got, err)
	}
	w.must(w.client.Kill(w.ctx(), ends.ID, unix.SIGTERM, false)) // to which the first process of a PID namespace is deaf
	w.must(w.client.Kill(w.ctx(), ends.ID, unix.SIGKILL, true))
	if e := w.exit(ends.ID); e.Code != 137 {
		t.Errorf("ended with %+v", e)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "supervisor/containers", ends.ID, "exit.json")); err != nil {
		t.Error(err)
	}
	w.delete(ends.ID)
	w.delete(killed.ID)
	log := filepath.Join(writes.LogDir, writes.LogPath)
	w.must(os.Rename(log, log+".1"))
	w.must(w.client.ReopenLog(w.ctx(), writes.ID))
	w.eventually("it writes on in a new log", func() bool { data, _ := os.ReadFile(log); return len(data) > 0 })
	restore()
	w.run(other)
	if out, _, err := w.exec(w.ctx(), other.ID, "echo", "again"); out != "again\n" || err != nil {
		t.Errorf("with room: %q, %v", out, err)
	}
}

// One that has no descriptor left at all still answers, by those that it keeps, and records exits.
func TestNoDescriptors(t *testing.T) {
	w := newWorld(t)
	w.watch()
	ends, other := w.container("sleep", "1000"), w.container("sleep", "1000")
	w.run(ends)
	pid := w.supervisorPID()
	most := len(w.descriptors(pid)) + 4
	restore := w.limitDescriptors(uint64(most))
	below := func() int {
		return len(slices.DeleteFunc(w.descriptors(pid), func(n int) bool { return n >= most }))
	}
	ctx, cancel := context.WithCancel(w.ctx())
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	for below() < most-1 { // all but one: the server has that for the next call
		before := below()
		watching.Go(func() { _ = w.client.Watch(ctx, func(supervisor.Exit) {}) })
		for i := 0; i < 100 && below() <= before; i++ {
			time.Sleep(10 * time.Millisecond)
		}
	}
	for range 2 * 16 { // more often than there are spare ones
		w.refusedForRoom(other, ends.ID)
		if got, err := w.client.List(w.ctx()); err != nil || len(got) != 1 {
			t.Fatalf("list: %v, %v", got, err)
		}
	}
	w.must(w.client.Kill(w.ctx(), ends.ID, unix.SIGKILL, false))
	if e := w.exit(ends.ID); e.Code != 137 {
		t.Errorf("ended with %+v", e)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "supervisor/containers", ends.ID, "exit.json")); err != nil {
		t.Error(err)
	}
	short, cancelShort := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancelShort()
	if err := w.client.Delete(short, ends.ID); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("delete without a descriptor for the OCI runtime: %v", err)
	}
	restore()
	w.delete(ends.ID)
	w.run(other)
}
