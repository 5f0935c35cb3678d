package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runs says whether a process with this argument runs in the container.
func (c *container) runs(argument string) bool {
	return strings.Contains(c.exec("ps", "-o", "args"), argument)
}

// A person at a terminal: prompt, size, Ctrl-C, exit code.
func TestExecTerminal(t *testing.T) {
	for handler, flags := range handlers(t) {
		t.Run(handler, func(t *testing.T) { execTerminal(t, newNode(t, flags...)) })
	}
}

func execTerminal(t *testing.T, n *node) {
	c := n.runPod("pod").run("c", forever)
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			n := c.in(t)
			// The size is there from the beginning if the client sends it in time (sandbox.TestExecStreamTerminal), which crictl
			// on a busy machine does not.
			s := n.crictl(true, "exec", "-i", "-t", "--transport", transport, c.id, "sh", "-c",
				`while [ "$(stty size)" = "0 0" ]; do sleep 0.1; done; stty size; echo $TERM; tty; exec sh`)
			s.sees(s.out, "24 80\r\nxterm\r\n/dev/pts/0\r\n")
			s.sees(s.out, "/ # ")
			s.resize(120, 40)
			n.eventually("the new size shows", func() bool {
				s.send("stty size\n")
				time.Sleep(50 * time.Millisecond)
				return strings.Contains(s.out.String(), "\r\n40 120\r\n")
			})
			s.send("echo sleeping; sleep 3000\n")
			s.sees(s.out, "\r\nsleeping")
			pause := 50 * time.Millisecond
			n.eventually("the shell lives on", func() bool {
				// More than one, for the first may come before the shell has put sleep into the foreground; not too soon, for each
				// throws away what the shell has not read yet.
				s.send("\x03")
				time.Sleep(pause)
				s.send("echo $((6*7)) lives\n")
				time.Sleep(pause)
				pause *= 2
				return strings.Contains(s.out.String(), "42 lives")
			})
			s.send("exit 9\n")
			if code := s.wait(); code != 1 { // crictl's own for any but 0, which it then tells
				t.Errorf("crictl ends with %d", code)
			}
			s.sees(s.out, "command terminated with exit code 9")
		})
	}
	n.eventually("what Ctrl-C has ended is gone", func() bool { return !c.runs("3000") })
}

// Pipes instead of a terminal: the streams apart, whole, each with its end.
func TestExecStreams(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever)
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			n := c.in(t)
			var out, errOut bytes.Buffer
			cmd := n.crictlCommand("exec", "--transport", transport, c.id, "sh", "-c", "echo out; echo err >&2; exit 7")
			cmd.Stdout, cmd.Stderr = &out, &errOut
			if err := cmd.Run(); err == nil || out.String() != "out\n" ||
				!strings.Contains(errOut.String(), "\nerr\n") || !strings.Contains(errOut.String(), "exit code 7") {
				t.Errorf("crictl ends with %v, %q, %q", err, out.String(), errOut.String())
			}
			sent, got := sha256.New(), sha256.New()
			cmd = n.crictlCommand("exec", "-i", "--transport", transport, c.id, "cat")
			cmd.Stdin, cmd.Stdout = io.TeeReader(io.LimitReader(rand.Reader, 64<<20), sent), got
			if err := cmd.Run(); err != nil || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
				t.Errorf("crictl ends with %v, digests %x and %x", err, sent.Sum(nil), got.Sum(nil))
			}
		})
	}
}

// What can be refused is refused before a client gets a URL.
func TestExecRefused(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	c := p.run("c", forever)
	created := p.create("created", forever)
	streams := func(id string, change func(*runtimeapi.ExecRequest)) *runtimeapi.ExecRequest {
		req := &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true}
		change(req)
		return req
	}
	none := func(*runtimeapi.ExecRequest) {}
	for _, tt := range []struct {
		req   *runtimeapi.ExecRequest
		code  codes.Code
		names string
	}{
		{streams("none", none), codes.NotFound, "none"},
		{streams(created.id, none), codes.FailedPrecondition, created.id},
		{streams(c.id, func(r *runtimeapi.ExecRequest) { r.Tty, r.Stderr = true, true }), codes.InvalidArgument, "tty"},
		{streams(c.id, func(r *runtimeapi.ExecRequest) { r.Stdout = false }), codes.InvalidArgument, "stdout"},
		{streams(c.id, func(r *runtimeapi.ExecRequest) { r.Cmd = nil }), codes.InvalidArgument, "cmd"},
	} {
		_, err := n.Runtime.Exec(n.context(), tt.req)
		wantError(t, err, tt.code, tt.names)
	}
	// By the time that the client comes it may have changed.
	resp, err := n.Runtime.Exec(n.context(), streams(c.id, none))
	if err != nil {
		t.Fatal(err)
	}
	c.stop(0)
	if _, err := n.connect(resp.GetUrl()).read().outcome(); err == nil || !strings.Contains(err.Error(), "not running") {
		t.Errorf("a container that has ended meanwhile: %v", err)
	}
}

// An exec'd session ends with its client, however that ends.
func TestExecEndsWithClient(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever)
	const script = "sleep 4321 & sleep 4321"
	for _, transport := range transports {
		for _, args := range [][]string{{"-i", "-t"}, {"-i"}, {}} {
			args := slices.Concat([]string{"exec", "--transport", transport}, args, []string{c.id, "sh", "-c", script})
			client := n.crictl(slices.Contains(args, "-t"), args...)
			n.eventually("it runs", func() bool { return c.runs("4321") })
			if err := client.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			n.eventually("it is gone", func() bool { return !c.runs("4321") })
		}
	}
}

// A session ends with its container, also where that has no PID namespace to take the session along.
func TestExecEndsWithContainer(t *testing.T) {
	for handler, flags := range handlers(t) {
		t.Run(handler, func(t *testing.T) { execEndsWithContainer(t, newNode(t, flags...)) })
	}
}

func execEndsWithContainer(t *testing.T, n *node) {
	for name, mode := range map[string]runtimeapi.NamespaceMode{
		"own": runtimeapi.NamespaceMode_CONTAINER, "shared": runtimeapi.NamespaceMode_POD, "node": runtimeapi.NamespaceMode_NODE,
	} {
		t.Run(name, func(t *testing.T) {
			p := n.runPod(name, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = mode }).in(t)
			sleep := fmt.Sprintf("sleep 4321%d", time.Now().UnixNano()%1e6) // on the node there may be others
			other := p.run("other", forever)
			c := p.run("c", "read x < /tmp/fifo", func(c *runtimeapi.ContainerConfig) {
				c.Command = []string{"sh", "-c", "mkfifo /tmp/fifo; read x < /tmp/fifo"}
			})
			s := c.session(&runtimeapi.ExecRequest{Stdout: true}, "sh", "-c", "echo begun; "+sleep).read()
			n.eventually("it runs", func() bool { return s.text(channelStdout) == "begun\n" })
			c.exec("sh", "-c", "echo > /tmp/fifo")
			if code, err := s.outcome(); err != nil || code != 137 {
				t.Errorf("exit code %d, %v", code, err)
			}
			n.eventually("its process is gone", func() bool { return !other.runs(sleep) })
		})
	}
}

// In a user namespace too the process may open what it stands on.
func TestExecInUserNamespace(t *testing.T) {
	for handler, flags := range handlers(t) {
		t.Run(handler, func(t *testing.T) { execInUserNamespace(t, newNode(t, flags...)) })
	}
}

func execInUserNamespace(t *testing.T, n *node) {
	p := n.runPod("pod", userns(100_000, 100_000))
	const onTerminal = "stty size; echo one > $(tty); echo two > /dev/tty; read x; echo $x"
	const onPipes = "echo one > /dev/stdout; echo two > /dev/stderr; cat /dev/stdin"
	for name, change := range map[string]func(*runtimeapi.ContainerConfig){
		"root": func(*runtimeapi.ContainerConfig) {},
		"user": security(func(s *securityContext) { s.RunAsUser = id(1000) }),
	} {
		c := p.run(name, forever, change)
		s := c.session(&runtimeapi.ExecRequest{Stdin: true, Stdout: true, Tty: true}, "sh", "-c", onTerminal).read()
		if err := s.send(channelStdin, "three\n"); err != nil {
			t.Fatal(err)
		}
		if code, err := s.outcome(); code != 0 || err != nil {
			t.Errorf("%s: exit code %d, %v", name, code, err)
		}
		for _, word := range []string{"one", "two", "three"} {
			if got := s.text(channelStdout); !strings.Contains(got, word) {
				t.Errorf("%s: %q lacks %s", name, got, word)
			}
		}
	}
	c := p.run("c", forever)
	s := c.session(&runtimeapi.ExecRequest{Stdin: true, Stdout: true, Stderr: true}, "sh", "-c", onPipes).read()
	if err := s.send(channelClose, "\x00"); err != nil {
		t.Fatal(err)
	}
	if code, err := s.outcome(); code != 0 || err != nil || s.text(channelStdout) != "one\n" || s.text(channelStderr) != "two\n" {
		t.Errorf("pipes: exit code %d, %v, %q, %q", code, err, s.text(channelStdout), s.text(channelStderr))
	}
}

// A client that does not read stops its own command, and gets all of its output in the end.
func TestExecSlowClient(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever)
	const size = 40 << 20
	script := fmt.Sprintf("head -c %d /dev/zero; exit 3", size)
	s := c.session(&runtimeapi.ExecRequest{Stdout: true, Stderr: true}, "sh", "-c", script)
	n.eventually("it runs", func() bool { return c.runs("head") })
	for range 20 { // others are served meanwhile
		c.exec("true")
	}
	if !c.runs("head") {
		t.Error("the command has ended, though nobody has read its output")
	}
	s.read()
	if code, err := s.outcome(); code != 3 || err != nil || len(s.text(channelStdout)) != size {
		t.Errorf("exit code %d, %v, %d bytes of %d", code, err, len(s.text(channelStdout)), size)
	}
}

// CVE-2022-23471: a terminal whose command is not there leaves nothing of its client's resizes.
func TestExecResizesLeaveNothing(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever)
	failing := func() {
		s := c.session(&runtimeapi.ExecRequest{Stdin: true, Stdout: true, Tty: true}, "no-such-program").read()
		for i := range uint16(10) {
			if s.resize(80+i, 24+i) != nil {
				break
			}
		}
		if _, err := s.outcome(); err == nil || !strings.Contains(err.Error(), "no-such-program") {
			t.Errorf("a program that is not there: %v", err)
		}
		s.close()
	}
	open := func() (n int) {
		for _, pid := range append(c.SupervisorPIDs(), c.PID()) {
			fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
			if err != nil {
				t.Fatal(err)
			}
			n += len(fds)
		}
		return n
	}
	failing()
	before := open()
	var clients sync.WaitGroup
	for range 10 {
		clients.Go(func() {
			for range 100 {
				failing()
			}
		})
	}
	clients.Wait()
	n.eventually("descriptors are as before", func() bool { return open() <= before })
	n.eventually("no process is left", func() bool { return !c.runs("no-such") })
}

// The daemon's end is a session's: its client is told, or finds the connection closed, and its process is killed.
func TestExecEndsWithDaemon(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever)
	for name, end := range map[string]func() error{"SIGTERM": n.Stop, "SIGKILL": n.Kill} {
		s := c.session(&runtimeapi.ExecRequest{Stdout: true, Stdin: true, Tty: true}, "sh", "-c", "echo begun; sleep 4321").read()
		n.eventually("it runs", func() bool { return strings.Contains(s.text(channelStdout), "begun") })
		if err := end(); err != nil {
			t.Fatal(err)
		}
		_, err := s.outcome()
		if err == nil || name == "SIGTERM" && !strings.Contains(err.Error(), "gantry") {
			t.Errorf("%s: the client is told %v", name, err)
		}
		if err := n.StartDaemon(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.eventually("the process is gone", func() bool { return !c.runs("4321") })
	}
}
