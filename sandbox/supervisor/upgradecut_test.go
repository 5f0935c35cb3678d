package supervisor_test

import (
	"context"
	"fmt"
	"math/rand/v2"
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

// A daemon dies at any moment of an upgrade that it has asked for, and the next
// one asks for another, or for none: containers that end meanwhile have their
// own exit codes and all their output, and the supervisor is the same process.
func TestUpgradeWhoseCallerDies(t *testing.T) {
	w := newWorld(t)
	var programs []string
	for _, name := range []string{"one", "another"} {
		w.makeProgram(name)
		programs = append(programs, w.binary)
	}
	rounds, err := strconv.Atoi(os.Getenv("GANTRY_TEST_ROUNDS"))
	if err != nil {
		rounds = 6
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	soon := func() time.Duration { return time.Duration(random.IntN(80000)) * time.Microsecond } // an upgrade takes about as long
	var before, open int
	for round := range rounds {
		const n = 3
		var reqs []supervisor.RunRequest
		var pids []int
		for i := range n {
			req := w.container("sh", "-c", fmt.Sprintf("trap 'echo end; exit %d' USR1; echo begin; while :; do usleep 2000; done", 10+i))
			pids = append(pids, w.run(req))
			reqs = append(reqs, req)
			w.eventually("it has begun", func() bool { return len(w.logged(req)) > 0 })
		}
		if before == 0 {
			before = w.supervisorPID()
		}
		var ending sync.WaitGroup
		for _, pid := range pids {
			wait := soon()
			ending.Go(func() {
				time.Sleep(wait)
				_ = unix.Kill(pid, unix.SIGUSR1)
			})
		}
		for range random.IntN(3) {
			slices.Reverse(programs)
			w.binary = programs[0]
			w.restart()
			ctx, die := context.WithTimeout(w.ctx(), soon())
			a, err := w.newer.Upgrade(ctx)
			t.Logf("round %d: %+v, %v", round, a, err)
			die()
			_ = w.newer.Close()
		}
		if random.IntN(2) == 0 {
			ending.Wait()
		}
		w.binary = programs[random.IntN(2)]
		w.restart()
		if random.IntN(2) == 0 {
			a, err := w.newer.Upgrade(w.ctx())
			t.Logf("round %d, the last: %+v, %v", round, a, err)
		}
		ctx, stop := context.WithTimeout(w.ctx(), limit)
		told := map[string]int{}
		for len(told) < n && ctx.Err() == nil {
			sub, done := context.WithCancel(ctx)
			_ = w.newer.Watch(sub, func(e supervisor.Exit) {
				if told[e.ID] = e.Code; len(told) == n {
					done()
				}
			})
			done()
		}
		stop()
		ending.Wait()
		for i, req := range reqs {
			if code, ok := told[req.ID]; !ok || code != 10+i {
				t.Errorf("round %d: container %s ended with %d (told: %v), want %d", round, req.ID, code, ok, 10+i)
			}
			if got := texts(w.logged(req), "stdout"); !slices.Equal(got, []string{"begin", "end"}) {
				t.Errorf("round %d: log %q", round, got)
			}
			w.delete(req.ID)
		}
		if now := w.supervisorPID(); now != before {
			t.Errorf("round %d: supervisor is process %d, it was %d", round, now, before)
			before = now
		}
		descriptors := func() int { return len(list(fmt.Sprintf("/proc/%d/fd", before))) }
		if round == 0 {
			open = descriptors()
		}
		w.eventually("upgrades leave no descriptors open", func() bool { return descriptors() <= open+2 }) // of calls that end
		if t.Failed() {
			return
		}
	}
}

// What a killed supervisor's OCI runtime is still doing is waited for by its
// successor, and so by a program that is to become that: it would not look for it again.
func TestUpgradeWaitsForThePredecessorsRuntime(t *testing.T) {
	w := newWorld(t)
	keep := w.container("sleep", "1000")
	w.run(keep)
	script := fmt.Sprintf("#!/bin/busybox sh\ncase \"$*\" in *' run '*) echo $$ >%[1]s/new; mv %[1]s/new %[1]s/pid; while [ ! -e %[1]s/go ]; do usleep 5000; done; exit 1;; esac\nexec %[2]s \"$@\"\n",
		w.dir, w.runtime.Path)
	req := w.container("true")
	req.Runtime.Path = filepath.Join(w.dir, "hang")
	w.must(os.WriteFile(req.Runtime.Path, []byte(script), 0o755))
	w.install("next")
	ran := make(chan error, 1)
	go func() {
		_, err := w.client.Run(w.ctx(), req)
		ran <- err
	}()
	var pid int
	w.eventually("the runtime runs", func() bool {
		text, _ := os.ReadFile(filepath.Join(w.dir, "pid"))
		pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		return pid > 0
	})
	w.killSupervisor()
	if err := <-ran; err == nil {
		t.Error("what the supervisor was killed in has succeeded")
	}
	a, err := w.newer.Upgrade(w.ctx())
	if s := state(pid); s != 'X' && s != 'Z' && !errdefs.IsUnavailable(err) {
		t.Errorf("upgraded beside the predecessor's runtime: %+v, %v", a, err)
	}
	w.must(os.WriteFile(filepath.Join(w.dir, "go"), nil, 0o600))
	w.upgrade()
	w.eventually("what was half made is undone", func() bool {
		return slices.Equal(list(filepath.Join(w.dir, "supervisor/containers")), []string{keep.ID})
	})
}

// A program that is still being written is waited for.
func TestUpgradeToAProgramThatIsWritten(t *testing.T) {
	w := newWorld(t)
	w.run(w.container("sleep", "1000"))
	w.makeProgram("next")
	f, err := os.OpenFile(w.binary, os.O_WRONLY, 0)
	w.must(err)
	w.restart()
	if a, err := w.newer.Upgrade(w.ctx()); !errdefs.IsUnavailable(err) {
		t.Errorf("%+v, %v", a, err)
	}
	w.must(f.Close())
	if a := w.upgrade(); !a.Replaced {
		t.Errorf("%+v", a)
	}
}
