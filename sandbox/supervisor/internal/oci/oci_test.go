package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/gate"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/reaper"
)

func newRunner(t *testing.T) *Runner {
	r, err := reaper.New(new(gate.Gate))
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { r.Run(stop); close(done) }()
	t.Cleanup(func() { close(stop); <-done })
	return NewRunner(r)
}

func script(t *testing.T, text string) Command {
	path := filepath.Join(t.TempDir(), "runtime")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return Command{Path: path, Root: "/root", Name: "run", Args: []string{"id"}}
}

func TestRun(t *testing.T) {
	r := newRunner(t)
	t.Setenv("SECRET", "x")
	out := filepath.Join(t.TempDir(), "out")
	c := script(t, `[ "$1 $2 $3 $4" = "--root /root run id" ] && env > `+out)
	if err := r.Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if env, _ := os.ReadFile(out); strings.Contains(string(env), "SECRET") {
		t.Errorf("inherited: %s", env)
	}
}

func TestRunFails(t *testing.T) {
	r := newRunner(t)
	log := filepath.Join(t.TempDir(), "log")
	for _, tt := range []struct{ text, log, want string }{
		{"echo from stderr >&2; exit 3", "", "runtime run: from stderr"},
		{"exit 3", "", "runtime run: exit status 3"},
		{`echo '{"level":"error","msg":"from the log"}' > "$4"; echo x >&2; exit 1`, log, "runtime run: from the log"},
		{"i=0; while [ $i -lt 3000 ]; do echo 012345678901234567890123456789012345678901234567890123456789 >&2; i=$((i+1)); done; exit 1", "", "runtime run: "},
	} {
		c := script(t, tt.text)
		c.LogFile = tt.log
		err := r.Run(t.Context(), c)
		var failed *Error
		if !errors.As(err, &failed) || !strings.HasPrefix(err.Error(), tt.want) || len(err.Error()) > maxText+100 {
			t.Errorf("%s: %.300v", tt.text, err)
		}
	}
	if _, err := os.Stat(log); err == nil {
		t.Error("the log is left")
	}
	if err := r.Run(t.Context(), Command{Path: "/nowhere"}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("no binary: %v", err)
	}
}

func TestRunIsKilled(t *testing.T) {
	r := newRunner(t)
	ctx, cancel := context.WithCancel(t.Context())
	pidFile := filepath.Join(t.TempDir(), "child")
	var pid string
	go func() {
		defer cancel()
		waitFor(t, "the command has a child", func() bool {
			data, _ := os.ReadFile(pidFile)
			pid = strings.TrimSpace(string(data))
			return pid != ""
		})
	}()
	if err := r.Run(ctx, script(t, "sleep 1000 & echo $! > "+pidFile+"; wait")); !errors.Is(err, context.Canceled) {
		t.Errorf("killed: %v", err)
	}
	<-ctx.Done()
	waitFor(t, "the child, which is of its group, has ended and been reaped here", func() bool {
		_, err := os.Stat("/proc/" + pid)
		return err != nil
	})
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("it is not so that %s", what)
			return
		}
	}
}

// A command that hangs does not hold up the others, however few the slots.
// crun's run --detach makes the container in a process that has left the group.
func TestDetachedIsKilledToo(t *testing.T) {
	r := newRunner(t)
	dir := t.TempDir()
	pidFile, never := filepath.Join(dir, "pid"), filepath.Join(dir, "never")
	if err := unix.Mkfifo(never, 0o600); err != nil {
		t.Fatal(err)
	}
	c := script(t, `[ -n "$DETACHED" ] || { DETACHED=1 setsid "$0" "$@" & wait; exit; }
echo $$ >`+pidFile+`.new; mv `+pidFile+`.new `+pidFile+`; read x <>`+never)
	ctx, cancel := context.WithCancel(t.Context())
	var pid int
	go func() {
		defer cancel()
		waitFor(t, "the second process runs", func() bool {
			data, _ := os.ReadFile(pidFile)
			pid, _ = strconv.Atoi(strings.TrimSpace(string(data)))
			return pid != 0
		})
	}()
	if err := r.Run(ctx, c); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); len(cmdline) > 0 {
		_ = unix.Kill(pid, unix.SIGKILL)
		t.Errorf("process %d goes on: %q", pid, cmdline)
	}
}

func TestHangingGivesSlotBack(t *testing.T) {
	r := newRunner(t)
	r.queue = newQueue(1, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx, script(t, "sleep 1000")) }()
	waitFor(t, "it has the slot", func() bool { return r.queue.inUse() == 1 })
	if err := r.Run(t.Context(), script(t, "exit 0")); err != nil {
		t.Error(err)
	}
	cancel()
	<-done
}

func FuzzLastError(f *testing.F) {
	f.Add([]byte("{\"level\":\"error\",\"msg\":\"a\"}\n{\"level\":\"info\",\"msg\":\"b\"}\n"))
	f.Add([]byte("{\"level\":\"error\",\"msg\":\"a\nxx"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s := LastError(data); len(s) > maxText+16 {
			t.Fatalf("%d bytes", len(s))
		}
	})
}
