package server

import (
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// A command that has just closed what it had of its parent, which is before it
// has its arguments, is found.
func TestCommandsWithinExec(t *testing.T) {
	s := &Server{dir: t.TempDir()}
	late := 0
	for range 200 {
		cmd := exec.Command("sh", "-c", "read line", "sh", filepath.Join(s.containersDir(), "c1", "pid"))
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil { // returns when the child has closed a pipe by executing sleep
			t.Fatal(err)
		}
		if id, ready, err := s.runtimeCommand(cmd.Process.Pid); !ready {
			late++
		} else if id != "c1" {
			t.Errorf("looked at once: %q, %v", id, err)
		}
		found, err := s.runtimeCommands()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err != nil || len(found) != 1 || !slices.Equal(found["c1"], []int{cmd.Process.Pid}) {
			t.Fatalf("found %v, %v, want %d", found, err, cmd.Process.Pid)
		}
	}
	t.Logf("%d of 200 had no arguments yet", late)
}
