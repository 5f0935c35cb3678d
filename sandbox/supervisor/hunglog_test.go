package supervisor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/test/disk"
)

const counting = `trap 'exit 6' TERM; i=0; while :; do echo line $i; i=$((i+1)); usleep 2000; done`

// A supervisor that is killed while a log hangs, and its successors, are followed by one that goes on with all the
// others, though they may not be able to end, and with that log when it can be written.
func TestKilledWhileLogHangs(t *testing.T) {
	for name, hang := range map[string]func(*disk.Hanging){"unkillable": (*disk.Hanging).Hang, "killable": (*disk.Hanging).Stall} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits for most of its time
			d := disk.NewHanging(t)
			w := newWorld(t)
			t.Cleanup(d.Resume) // before the audit
			w.watch()
			beside, hung, ending := w.container("sh", "-c", counting), w.container("sh", "-c", counting), w.container("sh", "-c", counting)
			hung.LogDir, hung.LogPath = filepath.Join(d.Dir, "sub"), "file"
			ending.LogDir, ending.LogPath = d.Dir, "file"
			for _, req := range []supervisor.RunRequest{beside, hung, ending} {
				w.run(req)
			}
			size := func(req supervisor.RunRequest) int64 {
				info, err := os.Stat(filepath.Join(req.LogDir, req.LogPath))
				w.must(err)
				return info.Size()
			}
			w.eventually("the log is written", func() bool { return strings.Contains(d.Content(), "line 20\n") })
			hang(d)
			d.AwaitHung(1)
			var killed []int
			for range 2 {
				pid := w.supervisorPID(killed...)
				killed = append(killed, pid)
				w.must(unix.Kill(pid, unix.SIGKILL))
				states, err := w.client.List(w.ctx())
				if err != nil || len(states) < 2 {
					t.Fatalf("after the death of process %d: %v, %v", pid, states, err)
				}
				if out, code, err := w.exec(w.ctx(), beside.ID, "echo", "here"); out != "here\n" || code != 0 || err != nil {
					t.Errorf("exec says %q, %d, %v", out, code, err)
				}
				before := size(beside)
				w.eventually("the other log goes on", func() bool { return size(beside) > before+1000 })
				another := w.container("sh", "-c", "echo new; exit 3")
				w.run(another)
				if e := w.exit(another.ID); e.Code != 3 {
					t.Errorf("exit %+v", e)
				}
				if len(killed) == 1 {
					w.must(w.client.Kill(w.ctx(), ending.ID, unix.SIGTERM, false))
					w.wantAdopted(ending.ID, 6)
					w.delete(ending.ID)
				}
			}
			d.Resume()
			lines := len(d.Content())
			w.eventually("the log goes on", func() bool { return len(d.Content()) > lines+2000 })
			for _, pid := range killed {
				w.eventually(fmt.Sprintf("process %d has ended", pid), func() bool { s := state(pid); return s == 'X' || s == 'Z' })
			}
			w.eventually("no lock of theirs is left", func() bool {
				return !slices.ContainsFunc(list(w.config().Dir), func(name string) bool { return strings.HasPrefix(name, "lock.") })
			})
			for _, req := range []supervisor.RunRequest{beside, hung} {
				w.must(w.client.Kill(w.ctx(), req.ID, unix.SIGTERM, false))
				w.wantAdopted(req.ID, 6)
			}
			inOrder(t, texts(w.logged(beside), "stdout"), true)
			inOrder(t, texts(w.parse([]byte(strings.TrimPrefix(d.Content(), "content\n"))), "stdout"), false)
		})
	}
}

// inOrder wants the lines of counting, each once, and all if it is to be complete.
func inOrder(t *testing.T, lines []string, complete bool) {
	t.Helper()
	last := -1
	for _, line := range lines {
		n := -1
		if _, err := fmt.Sscanf(line, "line %d", &n); err != nil || n <= last || complete && n != last+1 {
			t.Errorf("%q comes after line %d", line, last)
		}
		last = n
	}
}

// A container that has no log, as a pod's init, or one that cannot be opened, goes on as the others.
func TestUpgradeWithoutLogs(t *testing.T) {
	w := newWorld(t)
	w.watch()
	none, broken := w.container("sh", "-c", "trap 'exit 6' TERM; while :; do usleep 10000; done"), w.container("sh", "-c", counting)
	none.LogPath = ""
	w.run(none)
	w.run(broken)
	w.must(os.Rename(broken.LogDir, broken.LogDir+".away"))
	w.must(os.WriteFile(broken.LogDir, nil, 0o600)) // no folder
	w.killSupervisor()
	w.wantUpgrade("newer")
	w.must(os.Remove(broken.LogDir))
	w.must(w.client.ReopenLog(w.ctx(), broken.ID))
	w.eventually("the log goes on", func() bool {
		info, err := os.Stat(filepath.Join(broken.LogDir, broken.LogPath))
		return err == nil && info.Size() > 0
	})
	for _, req := range []supervisor.RunRequest{none, broken} {
		w.must(w.client.Kill(w.ctx(), req.ID, unix.SIGTERM, false))
		w.wantAdopted(req.ID, 6)
	}
}
