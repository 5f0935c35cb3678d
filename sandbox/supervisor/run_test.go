package supervisor_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

func TestExitCodes(t *testing.T) {
	w := newWorld(t)
	w.watch()
	tests := []struct {
		script string
		code   int
	}{
		{"exit 0", 0}, {"exit 7", 7}, {"exit 255", 255},
		{"kill -TERM $$", 0}, // pid 1 of a PID namespace takes no signal that it has no handler for
		{"trap 'exit 3' TERM; kill -TERM $$; sleep 5", 3},
	}
	for _, tt := range tests {
		before := time.Now()
		req := w.container("sh", "-c", tt.script)
		pid := w.run(req)
		e := w.exit(req.ID)
		if e.Code != tt.code || e.PID != pid || e.OOM || e.Reason != "" || e.At.Before(before) || e.At.After(time.Now()) {
			t.Errorf("%s: exit %+v, want code %d", tt.script, e, tt.code)
		}
		states, err := w.client.List(w.ctx())
		w.must(err)
		if len(states) != 1 || states[0].Exit == nil || states[0].Exit.Code != tt.code || !reflect.DeepEqual(states[0].Runtime, w.runtime) {
			t.Errorf("%s: List says %+v", tt.script, states)
		}
		w.delete(req.ID)
		w.delete(req.ID) // twice is fine
	}
}

func TestSignals(t *testing.T) {
	w := newWorld(t)
	w.watch()
	for _, tt := range []struct {
		sig  syscall.Signal
		code int
	}{{syscall.SIGKILL, 137}, {syscall.SIGTERM, 143}} {
		// without a PID namespace of its own, so that the default action is taken
		req := w.bundle(func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] })
		w.run(req)
		if _, err := w.client.Run(w.ctx(), req); !errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Errorf("second Run: %v", err)
		}
		w.must(w.client.Kill(w.ctx(), req.ID, tt.sig, false))
		if e := w.exit(req.ID); e.Code != tt.code {
			t.Errorf("signal %d: exit %+v, want %d", tt.sig, e, tt.code)
		}
		if err := w.client.Kill(w.ctx(), req.ID, tt.sig, false); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("Kill of an ended one: %v", err)
		}
		w.delete(req.ID)
	}
	if err := w.client.Kill(w.ctx(), "nobody", syscall.SIGTERM, false); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Kill of an unknown one: %v", err)
	}
	if err := w.client.Kill(w.ctx(), "../x", syscall.SIGTERM, false); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Kill of a bad id: %v", err)
	}
}

// Many that end before their pid file is read.
func TestInstantExits(t *testing.T) {
	w := newWorld(t)
	w.watch()
	for i := range 12 {
		req := w.container("sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i))
		w.run(req)
		if e := w.exit(req.ID); e.Code != i {
			t.Errorf("exit %+v, want %d", e, i)
		}
		if got := texts(w.logged(req), "stdout"); !slices.Equal(got, []string{fmt.Sprint(i)}) {
			t.Errorf("log %q", got)
		}
		w.delete(req.ID)
	}
}

func TestDeleteRunning(t *testing.T) {
	w := newWorld(t)
	req := w.container("sh", "-c", "sleep 1000 & sleep 1000")
	pid := w.run(req)
	w.delete(req.ID)
	if state(pid) != 'X' {
		t.Errorf("process %d lives", pid)
	}
}

func TestKillAll(t *testing.T) {
	w := newWorld(t)
	w.watch()
	req := w.bundle(func(s *specs.Spec) {
		s.Linux.Namespaces = s.Linux.Namespaces[1:] // its children outlive it
		s.Process.Args = []string{"sh", "-c", "sleep 1000 & setsid sleep 1000 & wait"}
	})
	w.run(req)
	w.must(w.client.Kill(w.ctx(), req.ID, syscall.SIGKILL, true))
	if e := w.exit(req.ID); e.Code != 137 {
		t.Errorf("exit %+v", e)
	}
	for _, file := range req.CgroupProcs {
		if data, _ := os.ReadFile(file); len(data) > 0 {
			t.Errorf("processes are left in %s: %q", file, data)
		}
	}
}

func TestLog(t *testing.T) {
	w := newWorld(t)
	w.watch()
	var want []string
	for i := 1; i <= 1000; i++ {
		want = append(want, fmt.Sprint(i))
	}
	long := strings.Repeat("x", 40000)
	tests := []struct {
		name, script   string
		stdout, stderr []line
	}{
		{"1000 lines on both", "seq 1 1000; seq 1 1000 >&2", lines("stdout", want...), lines("stderr", want...)},
		{"no newline at the end", "echo a; printf b", []line{{"stdout", "F", "a"}, {"stdout", "P", "b"}}, nil},
		{"long line", "head -c 40000 /dev/zero | tr '\\0' x; echo; echo y", []line{
			{"stdout", "P", long[:16384]}, {"stdout", "P", long[:16384]}, {"stdout", "F", long[:40000-2*16384]}, {"stdout", "F", "y"},
		}, nil},
		{"empty lines and CR", "printf '\\n\\r\\n'", lines("stdout", "", "\r"), nil},
		{"line in pieces", "printf a; usleep 50000; printf b; usleep 50000; echo c", lines("stdout", "abc"), nil},
		{"nothing", "true", nil, nil},
		{"through /dev/stdout", "ln -s /proc/self/fd /tmp/fd; echo a > /tmp/fd/1; echo b > /tmp/fd/2", lines("stdout", "a"), lines("stderr", "b")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := w.container("sh", "-c", tt.script)
			w.run(req)
			w.exit(req.ID)
			var stdout, stderr []line
			for _, l := range w.logged(req) {
				if l.stream == "stdout" {
					stdout = append(stdout, l)
				} else {
					stderr = append(stderr, l)
				}
			}
			if !slices.Equal(stdout, tt.stdout) || !slices.Equal(stderr, tt.stderr) {
				t.Errorf("got %d and %d lines, want %d and %d", len(stdout), len(stderr), len(tt.stdout), len(tt.stderr))
				if len(stdout) < 10 {
					t.Logf("%.100q %.100q", stdout, stderr)
				}
			}
			w.delete(req.ID)
		})
	}
}

func lines(stream string, text ...string) []line {
	var out []line
	for _, s := range text {
		out = append(out, line{stream, "F", s})
	}
	return out
}

func TestTerminal(t *testing.T) {
	w := newWorld(t)
	w.watch()
	req := w.bundle(func(s *specs.Spec) {
		s.Process.Terminal = true
		s.Process.Args = []string{"sh", "-c", "tty >/dev/null && echo yes; echo err >&2"}
	})
	w.run(req)
	if e := w.exit(req.ID); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	if got := w.logged(req); !slices.Equal(got, lines("stdout", "yes\r", "err\r")) {
		t.Errorf("log %q", got)
	}
}

func TestStdinIsKeptOpen(t *testing.T) {
	w := newWorld(t)
	w.watch()
	req := w.container("sh", "-c", "cat; echo ended")
	req.Stdin = true
	w.run(req)
	closed := w.container("sh", "-c", "cat; echo ended")
	w.run(closed)
	w.exit(closed.ID)
	if got := texts(w.logged(closed), "stdout"); !slices.Equal(got, []string{"ended"}) {
		t.Errorf("without stdin: %q", got)
	}
	w.mu.Lock()
	_, ended := w.exits[req.ID]
	w.mu.Unlock()
	if ended {
		t.Error("with stdin open the container has ended")
	}
	w.delete(req.ID)
}

func TestOOM(t *testing.T) {
	w := newWorld(t)
	w.watch()
	limit := int64(16 << 20)
	req := w.bundle(func(s *specs.Spec) {
		s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
		s.Process.Args = []string{"awk", "BEGIN { s = \"x\"; while (1) s = s s }"}
	})
	if req.OOMFile == "" {
		skip(t, "needs the memory cgroup controller")
	}
	w.run(req)
	if e := w.exit(req.ID); e.Code != 137 || !e.OOM {
		t.Errorf("exit %+v, want 137 by the OOM killer", e)
	}
	w.delete(req.ID)
}

func TestFailedRunsLeaveNothing(t *testing.T) {
	w := newWorld(t)
	empty := func(id string) {
		t.Helper()
		for _, dir := range []string{"supervisor/containers", "runtime"} {
			if got := list(filepath.Join(w.dir, dir)); len(got) != 0 {
				t.Errorf("%s: left in %s: %v", id, dir, got)
			}
		}
		for _, m := range w.mounts {
			if got := filepath.Join(m, w.cgroup, id); len(list(got)) != 0 {
				t.Errorf("cgroup is left: %s", got)
			}
		}
	}
	good := w.container("true")
	tests := []struct {
		name string
		edit func(*supervisor.RunRequest)
		text string
		kind error
	}{
		{"no runtime", func(r *supervisor.RunRequest) { r.Runtime.Path = "/nowhere/runc" }, "/nowhere/runc", errdefs.ErrFailedPrecondition},
		{"no bundle", func(r *supervisor.RunRequest) { r.Bundle = filepath.Join(w.dir, "none") }, "none", nil},
		{"no command", func(r *supervisor.RunRequest) { *r = w.container("nonsense") }, "nonsense", nil},
		{"bad id", func(r *supervisor.RunRequest) { r.ID = "../a" }, "../a", errdefs.ErrInvalidArgument},
		{"log outside", func(r *supervisor.RunRequest) { r.LogPath = "../a.log" }, "../a.log", errdefs.ErrInvalidArgument},
		{"relative bundle", func(r *supervisor.RunRequest) { r.Bundle = "b" }, `"b"`, errdefs.ErrInvalidArgument},
	}
	for _, tt := range tests {
		req := good
		tt.edit(&req)
		_, err := w.client.Run(w.ctx(), req)
		if err == nil || !strings.Contains(err.Error(), tt.text) || tt.kind != nil && !errors.Is(err, tt.kind) {
			t.Errorf("%s: %v", tt.name, err)
		}
		t.Logf("%s: %v", tt.name, err)
		empty(req.ID)
	}
	w.run(good) // the id is free again
}

func TestRuntimeHangs(t *testing.T) {
	w := newWorld(t)
	w.watch()
	hang := filepath.Join(w.dir, "hang")
	script := fmt.Sprintf("#!/bin/busybox sh\ncase \"$*\" in *' run '*) sleep 1000 & sleep 1000;; esac\nexec %s \"$@\"\n", w.runtime.Path)
	w.must(os.WriteFile(hang, []byte(script), 0o755))
	req := w.container("true")
	req.Runtime.Path = hang
	ctx, cancel := context.WithTimeout(w.ctx(), 200*time.Millisecond)
	defer cancel()
	_, err := w.client.Run(ctx, req)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hanging runtime: %v", err)
	}
	other := w.container("true")
	w.run(other)
	w.exit(other.ID)
	req.Runtime.Path = w.runtime.Path
	w.run(req) // waits until the first is undone
	if e := w.exit(req.ID); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
}

// Runs that are cancelled at any moment leave nothing; the audit looks.
func TestRunCancelled(t *testing.T) {
	w := newWorld(t)
	for i := range 12 {
		req := w.container("sleep", "1000")
		ctx, cancel := context.WithTimeout(w.ctx(), time.Duration(1+3*i)*time.Millisecond)
		_, err := w.client.Run(ctx, req)
		cancel()
		if err == nil {
			w.delete(req.ID)
			continue
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled Run: %v", err)
		}
	}
	w.eventually("nothing runs", func() bool {
		return len(list(filepath.Join(w.dir, "supervisor/containers"))) == 0
	})
}
