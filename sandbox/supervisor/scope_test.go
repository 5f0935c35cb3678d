package supervisor_test

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
)

// TestNoScope: where no scope can be made there is a supervisor nevertheless, and a word of it. That one is made
// where systemd can is e2e.TestSystemdUnit.
func TestNoScope(t *testing.T) {
	w := newWorld(t)
	w.must(w.client.Close())
	w.must(unix.Kill(w.supervisorPID(), unix.SIGKILL))
	w.eventually("the supervisor is gone", func() bool { return w.supervisorPID() == 0 })
	t.Setenv("PATH", "") // no systemd-run
	config := w.config()
	config.Scope = true
	var err error
	w.client, err = supervisor.Connect(w.ctx(), config)
	w.must(err)
	if w.supervisorPID() == 0 {
		t.Error("there is no supervisor")
	}
	if log, err := os.ReadFile(config.LogFile); err != nil || !bytes.Contains(log, []byte("No scope for the supervisor")) {
		t.Errorf("the log, %v: %s", err, log)
	}
}
