package supervisor_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

func TestExec(t *testing.T) {
	w := newWorld(t)
	req := w.container("sleep", "1000")
	w.run(req)
	for _, tt := range []struct {
		script, out string
		code        int
	}{
		{"echo out; echo err >&2", "out\nerr\n", 0},
		{"exit 9", "", 9},
		{"kill -KILL $$", "", 137},
		{"cat", "", 0}, // stdin is /dev/null
	} {
		out, code, err := w.exec(w.ctx(), req.ID, "sh", "-c", tt.script)
		if err != nil || code != tt.code || out != tt.out {
			t.Errorf("%s: %q, code %d, %v", tt.script, out, code, err)
		}
	}
	if _, _, err := w.exec(w.ctx(), req.ID, "nonsense"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("no such command: %v", err)
	}
	if _, _, err := w.exec(w.ctx(), "nobody", "true"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("no such container: %v", err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, code, err := w.exec(w.ctx(), req.ID, "sh", "-c", "exit "+string(rune('0'+i))); err != nil || code != i {
				t.Errorf("one of eight: %d, %v", code, err)
			}
		})
	}
	wg.Wait()
	if got := execFiles(w, req.ID); len(got) != 0 {
		t.Errorf("files are left: %v", got)
	}
}

func execFiles(w *world, id string) []string {
	files, _ := filepath.Glob(filepath.Join(w.dir, "supervisor/containers", id, "exec-*"))
	return files
}

func TestExecStdin(t *testing.T) {
	w := newWorld(t)
	req := w.container("sleep", "1000")
	w.run(req)
	inR, inW, err := os.Pipe()
	w.must(err)
	outR, outW, err := os.Pipe()
	w.must(err)
	defer outR.Close()
	p, _ := json.Marshal(specs.Process{Cwd: "/", Env: []string{"PATH=/bin"}, Args: []string{"cat"}})
	var wg sync.WaitGroup
	wg.Go(func() {
		code, err := w.client.Exec(w.ctx(), supervisor.ExecRequest{ID: req.ID, Process: p, Stdin: inR, Stdout: outW})
		if err != nil || code != 0 {
			t.Errorf("cat: %d, %v", code, err)
		}
		_ = outW.Close()
	})
	_, _ = inW.WriteString("hello\n")
	got, err := bufio.NewReader(outR).ReadString('\n')
	if got != "hello\n" || err != nil {
		t.Errorf("cat says %q, %v", got, err)
	}
	_ = inW.Close() // the supervisor holds no copy, so that cat sees the end
	_ = inR.Close()
	wg.Wait()
}

// A background child that holds the output open does not hold the call.
func TestExecBackgroundChild(t *testing.T) {
	w := newWorld(t)
	req := w.container("sleep", "1000")
	w.run(req)
	r, wr, err := os.Pipe()
	w.must(err)
	defer r.Close()
	defer wr.Close()
	p, _ := json.Marshal(specs.Process{Cwd: "/", Env: []string{"PATH=/bin"}, Args: []string{"sh", "-c", "sleep 1000 & exit 4"}})
	code, err := w.client.Exec(w.ctx(), supervisor.ExecRequest{ID: req.ID, Process: p, Stdout: wr, Stderr: wr})
	if err != nil || code != 4 {
		t.Errorf("code %d, %v", code, err)
	}
}

func TestExecTimeoutKillsSession(t *testing.T) {
	w := newWorld(t)
	req := w.container("sleep", "1000")
	w.run(req)
	ctx, cancel := context.WithTimeout(w.ctx(), 300*time.Millisecond)
	defer cancel()
	// children: plain, orphaned in the same session, in one of their own, deaf to SIGTERM
	_, _, err := w.exec(ctx, req.ID, "sh", "-c", `trap "" TERM HUP INT; sleep 2000 & (sleep 2000 &)
		setsid sh -c "sleep 2000; :" & sleep 2000; sleep 2000`)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timeout: %v", err)
	}
	w.eventually("the exec'd processes are gone", func() bool {
		for _, pid := range w.processes() {
			cmdline, _ := os.ReadFile(filepath.Join("/proc", itoa(pid), "cmdline"))
			if strings.Contains(string(cmdline), "2000") {
				return false
			}
		}
		return len(execFiles(w, req.ID)) == 0
	})
	if out, _, err := w.exec(w.ctx(), req.ID, "echo", "alive"); err != nil || out != "alive\n" {
		t.Errorf("after it: %q, %v", out, err)
	}
}

func TestExecEndsWithContainer(t *testing.T) {
	w := newWorld(t)
	w.watch()
	req := w.container("sleep", "1000")
	w.run(req)
	done := make(chan error, 1)
	go func() {
		_, code, err := w.exec(w.ctx(), req.ID, "sleep", "1000")
		if err == nil && code != 137 {
			err = errors.New("wrong code " + itoa(code))
		}
		done <- err
	}()
	w.eventually("it runs", func() bool { return len(execFiles(w, req.ID)) > 0 })
	w.delete(req.ID) // while the OCI runtime starts the process, or later
	if err := <-done; err != nil && !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Error(err)
	}
}

func TestExecTerminal(t *testing.T) {
	w := newWorld(t)
	req := w.container("sleep", "1000")
	w.run(req)
	p, _ := json.Marshal(specs.Process{Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: true, Args: []string{"sh", "-c", "read x; echo got $x; tty; exit 5"}})
	var out strings.Builder
	var copying sync.WaitGroup
	code, err := w.client.Exec(w.ctx(), supervisor.ExecRequest{ID: req.ID, Process: p, Terminal: true, Console: func(master *os.File) {
		copying.Go(func() {
			defer master.Close()
			_, _ = master.WriteString("word\n")
			buf := make([]byte, 4096)
			for {
				n, err := master.Read(buf) // EIO at the end
				out.Write(buf[:n])
				if err != nil {
					return
				}
			}
		})
	}})
	copying.Wait()
	if err != nil || code != 5 || !strings.Contains(out.String(), "got word") || !strings.Contains(out.String(), "/dev/pts/") {
		t.Errorf("code %d, %v, %q", code, err, out.String())
	}
	if _, err := w.client.Exec(w.ctx(), supervisor.ExecRequest{ID: req.ID, Process: p, Terminal: true}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("without a Console: %v", err)
	}
}
