package server

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

func TestReadStat(t *testing.T) {
	s, err := readStat(os.Getpid())
	if err != nil || s.ppid != os.Getppid() || s.startTime == 0 || s.state == 0 {
		t.Errorf("%+v, %v", s, err)
	}
	// 0 where the session's leader is outside of this PID namespace, as it is on some CI machines.
	if sid, err := unix.Getsid(0); err != nil || s.session != sid {
		t.Errorf("session %d, getsid: %d, %v", s.session, sid, err)
	}
}

// What ends shows it from then on until it is waited for.
func TestStatOfTheExiting(t *testing.T) {
	if s, err := readStat(os.Getpid()); err != nil || s.exiting {
		t.Errorf("of the living: %+v, %v", s, err)
	}
	cmd := exec.Command("/bin/true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if s, err := readStat(cmd.Process.Pid); err != nil || !s.exiting {
		t.Errorf("of the ended: %+v, %v", s, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func FuzzParseStat(f *testing.F) {
	data, _ := os.ReadFile("/proc/self/stat")
	f.Add(data)
	f.Add([]byte("1 (a) b) c) S 1"))
	f.Fuzz(func(t *testing.T, data []byte) { _, _ = parseStat(data) })
}

func TestCheckID(t *testing.T) {
	for id, ok := range map[string]bool{"a": true, "A-b_c.9": true, "": false, ".": false, "..": false, ".a": false, "a/b": false, "a\n": false, string(make([]byte, 129)): false} {
		if (checkID(id) == nil) != ok {
			t.Errorf("%q", id)
		}
	}
}

func FuzzRunRequest(f *testing.F) {
	f.Add([]byte(`{"id":"x","runtime":{"path":"/bin/runc","root":"/r"},"bundle":"/b","logDir":"/l","logPath":"0.log","cgroupProcs":["/c/cgroup.procs"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var r supervisor.RunRequest
		if wire.Unmarshal(data, &r) != nil || checkRun(&r) != nil {
			return
		}
		if filepath.Base(r.ID) != r.ID || r.ID == ".." {
			t.Fatalf("id %q leaves its directory", r.ID)
		}
	})
}

// With crun and systemd a container's processes lie below its cgroup, and those
// of a container that may write to its cgroups wherever it wants.
func TestProcessesOfCgroupsBelow(t *testing.T) {
	dir := t.TempDir()
	for name, pids := range map[string]string{"a": "", "a/container": "7\n8\n", "a/container/deep": "9\n", "b": "10\n"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "cgroup.procs"), []byte(pids), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := cgroupPIDs([]string{filepath.Join(dir, "a/cgroup.procs"), filepath.Join(dir, "b/cgroup.procs"), filepath.Join(dir, "gone/cgroup.procs")})
	if want := []int{7, 8, 9, 10}; !slices.Equal(got, want) || err != nil {
		t.Errorf("processes %v, want %v, %v", got, want, err)
	}
}

// What ends a container waits for no exec of it, nor do execs of others.
func TestTurns(t *testing.T) {
	s := &Server{dir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	a, b := s.newContainer("a"), s.newContainer("b")
	execs := a.command("exec").Turn
	for _, other := range []string{
		a.command("delete").Turn, a.command("update").Turn, b.command("exec").Turn, b.command("run").Turn,
	} {
		if other == execs || other == "" {
			t.Errorf("%q waits behind the execs of %q", other, execs)
		}
	}
}
