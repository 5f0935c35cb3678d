package disk

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A process that waits for it does not heed SIGKILL before it answers.
func TestHanging(t *testing.T) {
	d := NewHanging(t)
	for _, name := range []string{"file", "sub/file"} {
		if body, err := exec.Command("cat", filepath.Join(d.Dir, name)).Output(); err != nil || string(body) != content {
			t.Fatalf("%s: %q, %v", name, body, err)
		}
	}
	d.Hang()
	cmd := exec.Command("cat", filepath.Join(d.Dir, "sub/file"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	d.AwaitHung(1)
	if err := cmd.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		t.Fatalf("ended: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	d.Resume()
	if err := <-ended; err == nil || err.Error() != "signal: killed" {
		t.Errorf("ended with %v", err)
	}
}

// One that waits for it while it stalls does; and what is written is there.
func TestStalling(t *testing.T) {
	d := NewHanging(t)
	more := func() *exec.Cmd {
		return exec.Command("sh", "-c", "exec echo more >>"+filepath.Join(d.Dir, "sub/file"))
	}
	if out, err := more().CombinedOutput(); err != nil || d.Content() != content+"more\n" {
		t.Fatalf("%q, %v: %s", d.Content(), err, out)
	}
	d.Stall()
	cmd := more()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.AwaitHung(1)
	if err := cmd.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("ended with %v", err)
	}
	d.Resume()
	if out, err := exec.Command("truncate", "--size=2", filepath.Join(d.Dir, "sub/file")).CombinedOutput(); err != nil || d.Content() != content[:2] {
		t.Errorf("cut to %q, %v: %s", d.Content(), err, out)
	}
}
