package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestLogFormat(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", "echo one; echo two >&2; sleep 0.1; echo; printf 'no newline'")
	s := c.waitExit()
	if got, want := c.logged("stderr"), "two\n"; got != want {
		t.Errorf("stderr %q, want %q", got, want)
	}
	lines := c.log()
	var stdout []logLine
	last := map[string]time.Time{} // of each stream: what comes between two of them is not known
	for i, l := range lines {
		if l.at.Before(last[l.stream]) {
			t.Errorf("line %d is older than the one before", i)
		}
		last[l.stream] = l.at
		if l.at.UnixNano() < s.GetCreatedAt() {
			t.Errorf("line %d is older than the container", i)
		}
		if l.stream == "stdout" {
			stdout = append(stdout, l)
		}
	}
	if len(stdout) != 3 || stdout[0].text != "one" || stdout[1].text != "" || stdout[2].text != "no newline" || stdout[0].partial || stdout[1].partial {
		t.Errorf("stdout lines: %+v", stdout)
	}
}

// Everything that a container wrote is in the file when it is reported exited, long lines in parts.
func TestLogIsWhole(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	long := p.run("long", "head -c 100000 /dev/zero | tr '\\0' x; echo")
	many := p.run("many", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done")
	long.waitExit()
	if got := long.logged("stdout"); got != strings.Repeat("x", 100000)+"\n" {
		t.Errorf("a line of 100000 bytes came back as %d", len(got)-1)
	}
	for _, l := range long.log() {
		if len(l.text) > 16<<10 {
			t.Errorf("a part of %d bytes: readers of CRI logs expect at most 16 KiB", len(l.text))
		}
	}
	many.waitExit()
	lines := many.log()
	if len(lines) != 20000 || lines[0].text != "line 0" || lines[len(lines)-1].text != "line 19999" {
		t.Errorf("%d lines, want 20000", len(lines))
	}
}

func TestReopenLog(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", "while :; do echo tick; sleep 0.02; done")
	n.eventually("the container logs", func() bool { return len(c.log()) > 2 })
	rotated := c.logPath() + ".1"
	if err := os.Rename(c.logPath(), rotated); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Runtime.ReopenContainerLog(n.context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id}); err != nil {
		t.Fatal(err)
	}
	n.eventually("the new file gets lines", func() bool { return len(c.log()) > 2 })
	before, err := os.ReadFile(rotated)
	if err != nil {
		t.Fatal(err)
	}
	n.eventually("more lines come", func() bool { return len(c.log()) > 10 })
	after, err := os.ReadFile(rotated)
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != len(before) || !strings.HasSuffix(string(after), "\n") {
		t.Errorf("the rotated file still grows or ends within a line")
	}
}

// A log does not pass its largest size. It ends with a whole line, and goes on when it has been rotated.
func TestLargestLog(t *testing.T) {
	const most = 64 << 10
	n := configured(t, "[logs]\nmax_size = \"64KiB\"\n")
	c := n.runPod("pod").run("c", "seq 1 100000; touch /done; while [ ! -e /go ]; do sleep 0.05; done; echo after; seq 1 10")
	n.eventually("it is told that output is dropped", func() bool {
		log, err := os.ReadFile(filepath.Join(n.Dir, "run/supervisor.log"))
		return err == nil && strings.Contains(string(log), "it has its largest size")
	})
	n.eventually("the container has written all", func() bool {
		r, err := c.execSync(10, "test", "-e", "/done")
		return err == nil && r.GetExitCode() == 0
	})
	lines := c.log() // each whole
	info, err := os.Stat(c.logPath())
	if err != nil {
		t.Fatal(err)
	}
	if last := lines[len(lines)-1].text; info.Size() > most || info.Size() < most-100 || last != fmt.Sprint(len(lines)) {
		t.Errorf("%d bytes in %d lines, the last is %q", info.Size(), len(lines), last)
	}
	if err := os.Rename(c.logPath(), c.logPath()+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Runtime.ReopenContainerLog(n.context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id}); err != nil {
		t.Fatal(err)
	}
	c.exec("touch", "/go")
	c.waitExit()
	if got, want := c.logged("stdout"), "after\n1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n"; !strings.HasSuffix(got, want) {
		t.Errorf("after the rotation %q", got)
	}
	log, err := os.ReadFile(filepath.Join(n.Dir, "run/supervisor.log"))
	if err != nil || !strings.Contains(string(log), "Log is written again") {
		t.Errorf("the supervisor does not tell that the log goes on: %v\n%s", err, log)
	}
}
