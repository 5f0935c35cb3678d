package killpoint

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const workerEnv = "GANTRY_TEST_WORKER"

func TestMain(m *testing.M) {
	Main()
	if dir := os.Getenv(workerEnv); dir != "" {
		work(dir)
		return
	}
	os.Exit(m.Run())
}

// steps is how many directories a worker makes one after another.
const steps = 5

// work makes directories when told to, beside threads that come and go and signals that they get.
func work(dir string) {
	in := bufio.NewReader(os.Stdin)
	_ = exec.Command("true").Run() // for the first, package os starts one more, to see what the kernel can
	fmt.Println("up")
	for {
		if _, err := in.ReadString('\n'); err != nil {
			return
		}
		stop := make(chan bool)
		var noise sync.WaitGroup
		for range 4 {
			noise.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						_ = exec.Command("no-such-program").Run() // looks for files, and changes nothing
						time.Sleep(time.Microsecond)
					}
				}
			})
		}
		for i := range steps {
			if err := os.Mkdir(filepath.Join(dir, fmt.Sprint(i)), 0o700); err != nil {
				panic(err)
			}
		}
		out, err := exec.Command("sh", "-c", "mkdir "+filepath.Join(dir, "child")).CombinedOutput() // one more change: its start
		if err != nil {
			panic(string(out))
		}
		close(stop)
		noise.Wait()
		fmt.Println("done")
	}
}

// worker is the process, and what it says.
type worker struct {
	cmd  *exec.Cmd
	out  *bufio.Reader
	tell io.Writer
	dir  string
}

func start(t *testing.T) *worker {
	t.Helper()
	w := &worker{dir: t.TempDir()}
	w.cmd = exec.Command("/proc/self/exe")
	w.cmd.Env = append(os.Environ(), workerEnv+"="+w.dir)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w.cmd.Stdout, w.cmd.Stderr, w.out = out, os.Stderr, bufio.NewReader(in)
	stdin, err := w.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.Close()
	t.Cleanup(func() {
		stdin.Close()
		_ = w.cmd.Process.Kill() // it may have been
		_ = w.cmd.Wait()
		in.Close()
	})
	if word, err := w.out.ReadString('\n'); word != "up\n" {
		t.Fatal(word, err)
	}
	w.tell = stdin
	return w
}

// run lets the worker do its work under a trace.
func (w *worker) run(t *testing.T, at Point) (r Report, done bool) {
	t.Helper()
	trace, err := Attach(w.cmd.Process.Pid, at)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(w.tell, "go")
	word, _ := w.out.ReadString('\n') // the end, when it was killed
	r, err = trace.End()
	if err != nil {
		t.Fatal(err)
	}
	return r, word == "done\n"
}

func (w *worker) made(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestCount(t *testing.T) {
	Require(t)
	w := start(t)
	for range 2 { // a process can be followed again
		r, done := w.run(t, Point{Calls: []string{"mkdirat", "clone", "clone3"}})
		if !done || r.Killed || len(r.Changes) != steps+1 || !strings.Contains(r.Changes[0], filepath.Join(w.dir, "0")) || !strings.HasPrefix(r.Last(), "change 6: clone") {
			t.Errorf("worker done %v, report %v", done, r)
		}
		if err := os.RemoveAll(w.dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(w.dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if !Alive(w.cmd.Process.Pid) {
		t.Error("the worker is dead")
	}
	fmt.Fprintln(w.tell, "go") // not followed any more
	if word, err := w.out.ReadString('\n'); word != "done\n" {
		t.Errorf("the worker says %q, %v", word, err)
	}
}

func TestKill(t *testing.T) {
	Require(t)
	for _, after := range []bool{false, true} {
		for n := 1; n <= steps; n++ {
			w := start(t)
			r, done := w.run(t, Point{N: n, After: after})
			if done || !r.Killed || len(r.Changes) != n || Alive(w.cmd.Process.Pid) {
				t.Errorf("change %d: worker done %v, report %v", n, done, r)
			}
			want := n - 1
			if after {
				want = n
			}
			if got := w.made(t); got != want {
				t.Errorf("killed at change %d, after it %v: %d directories, want %d; %s", n, after, got, want, r.Last())
			}
			var exit *exec.ExitError
			if err := w.cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Errorf("the worker ended with %v, want SIGKILL", err)
			}
		}
	}
}

// The start of a program is a change; the program itself lives on.
func TestChildLivesOn(t *testing.T) {
	Require(t)
	w := start(t)
	if r, _ := w.run(t, Point{N: steps + 1, After: true}); !r.Killed {
		t.Fatal(r)
	}
	for end := time.Now().Add(time.Minute); w.made(t) != steps+1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the child has made nothing")
		}
	}
}

func TestNoSuchProcess(t *testing.T) {
	if _, err := Attach(1<<22+1, Point{}); err == nil {
		t.Error("traced a process that is not there")
	}
}
