package killpoint

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tracerEnv makes Main the tracer. Its value is the process id, the number of the change, when, and which calls.
const tracerEnv = "GANTRY_TEST_TRACE"

// What the tracer says: lines of a word and its argument.
const (
	wordReady  = "ready"  // all threads are followed
	wordChange = "change" // one that counted
	wordKilled = "killed"
	wordError  = "error"
)

// Point says where a process dies.
type Point struct {
	N     int      // the N-th change after Attach; 0 = none, to count them
	After bool     // right after the change was made; else before
	Calls []string // names of system calls that count, e.g. "renameat"; none = all that this package knows
}

// Report is what became of a traced process.
type Report struct {
	Changes []string // as they were begun, one line each
	Killed  bool     // at Point.N; then Changes ends with it
}

// Last is the change that the process died at, for failure messages.
func (r Report) Last() string {
	if len(r.Changes) == 0 {
		return "no change"
	}
	return fmt.Sprintf("change %d: %s", len(r.Changes), r.Changes[len(r.Changes)-1])
}

// GoesOn reports whether the last change sets something off that goes on while the process lives or is dead: a program
// that was started or told something. To be killed after such a change is another case than before the next one.
func (r Report) GoesOn() bool {
	if len(r.Changes) == 0 {
		return false
	}
	last := r.Changes[len(r.Changes)-1]
	return strings.HasPrefix(last, "clone") || strings.Contains(last, " pipe:") || strings.Contains(last, " socket:")
}

// Trace is a process being followed. Its methods are for one goroutine.
type Trace struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	report Report
	done   chan error // the tracer's words are read
}

// Main must be the first call in TestMain. It returns at once unless this process was started by Attach.
func Main() {
	if job := os.Getenv(tracerEnv); job != "" {
		if err := runTracer(job); err != nil {
			fmt.Println(wordError, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// Require skips a test where processes may not be traced, saying why; in CI (CI=true) it fails instead.
func Require(t testing.TB) {
	t.Helper()
	trace, err := probe()
	if err == nil {
		_, err = trace.End()
	}
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("kill tests need ptrace(2): %v", err)
	default:
		t.Skipf("kill tests need ptrace(2): %v", err)
	}
}

// probe traces a process that does nothing.
func probe() (*Trace, error) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	trace, err := Attach(cmd.Process.Pid, Point{})
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed
	return trace, err
}

// Attach follows a process until End. When it returns, every further change of the process counts.
func Attach(pid int, at Point) (*Trace, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	when := "before"
	if at.After {
		when = "after"
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d %s %s", tracerEnv, pid, at.N, when, strings.Join(at.Calls, ",")),
		"GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the tracer: %w", err)
	}
	t := &Trace{cmd: cmd, stdin: stdin, done: make(chan error, 1)}
	ready := make(chan bool, 1)
	go func() { t.done <- t.listen(stdout, ready) }()
	if !<-ready {
		_, err := t.End()
		return nil, fmt.Errorf("tracing process %d: %w", pid, errors.Join(err, errors.New("the tracer ended early")))
	}
	return t, nil
}

// listen reads the tracer's words to their end.
func (t *Trace) listen(out io.Reader, ready chan<- bool) error {
	defer close(ready)
	var failed error
	for lines := bufio.NewScanner(out); lines.Scan(); {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case wordReady:
			ready <- true
		case wordChange:
			t.report.Changes = append(t.report.Changes, rest)
		case wordKilled:
			t.report.Killed = true
		case wordError:
			failed = errors.Join(failed, errors.New(rest))
		}
	}
	return failed
}

// End lets the process go on untraced, if it lives, and tells what was seen of it. A process that was killed has
// ended when End returns, and can be waited for.
func (t *Trace) End() (Report, error) {
	_ = t.stdin.Close() // the tracer may have ended
	err := <-t.done
	if werr := t.cmd.Wait(); err == nil && werr != nil {
		err = fmt.Errorf("the tracer: %w", werr)
	}
	return t.report, err
}

// Alive reports whether a process runs: one that has ended and was not waited for does not.
func Alive(pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n == 0
}
