package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// interactive is a container with stdin, which others may take after the first client.
func interactive(c *runtimeapi.ContainerConfig) { c.Stdin = true }

// once is one whose stdin ends with its first client.
func once(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }

func tty(c *runtimeapi.ContainerConfig) { c.Tty = true }

// attach runs crictl attach.
func (c *container) attach(transport string, terminal bool) *crictl {
	c.t.Helper()
	args := []string{"attach", "--transport", transport, "--stdin"}
	if terminal {
		args = append(args, "--tty")
	}
	return c.crictl(terminal, append(args, c.id)...)
}

const echo = "while read x; do echo got $x; echo aside $x >&2; done; echo end"

// Clients of both protocols come and go, together and one after the other; the log has it all.
func TestAttach(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", echo, interactive)
	first, second := c.attach("spdy", false), c.attach("websocket", false)
	for i, one := range []*crictl{first, second, first, second} {
		text := string(rune('a' + i))
		one.send(text + "\n")
		for _, each := range []*crictl{first, second} {
			if i == 0 && each != first {
				continue // it may not be there yet
			}
			each.sees(each.out, "got "+text+"\n")
			each.sees(each.err, "aside "+text+"\n")
		}
	}
	for _, one := range []*crictl{first, second} { // a half-close is the end of a session, and not of the container's stdin
		_ = one.in.Close()
		if code := one.wait(); code != 0 {
			t.Errorf("crictl ended with %d: %s", code, one.err)
		}
	}
	third := c.attach("spdy", false)
	third.send("e\n")
	third.sees(third.out, "got e\n")
	c.stop(0)
	if code := third.wait(); code != 0 {
		t.Errorf("at the container's end crictl ended with %d: %s", code, third.err)
	}
	if got := c.logged("stdout"); got != "got a\ngot b\ngot c\ngot d\ngot e\n" {
		t.Errorf("log %q", got)
	}
}

// With stdin_once the first client's half-close is the end of the container's
// stdin; what it then writes comes to its end.
func TestAttachStdinOnce(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	for _, transport := range []string{"spdy", "websocket"} {
		c := p.run(transport, "cat; echo end", once)
		client := c.attach(transport, false)
		client.send("one\n")
		client.sees(client.out, "one\n")
		_ = client.in.Close()
		if code := client.wait(); code != 0 || client.out.String() != "one\nend\n" {
			t.Errorf("%s: crictl ended with %d, wrote %q and %q", transport, code, client.out, client.err)
		}
		if code := c.waitExit().GetExitCode(); code != 0 {
			t.Errorf("%s: exit code %d", transport, code)
		}
	}
}

// A terminal: its size is the client's, what is typed comes back, Ctrl-C is the
// container's; clients may come again though stdin is for once.
func TestAttachTerminal(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	for _, transport := range []string{"spdy", "websocket"} {
		c := p.run(transport, "trap 'stty size' WINCH; trap 'echo interrupted' INT; echo ready; while :; do read x && echo got $x; done", once, tty)
		n.eventually("the shell is ready", func() bool { return strings.Contains(c.logged("stdout"), "ready") })
		client := c.attach(transport, true)
		client.sees(client.out, "24 80\r\n")
		client.resize(77, 33)
		client.sees(client.out, "33 77\r\n")
		client.send("one\n")
		client.sees(client.out, "one\r\ngot one\r\n")
		client.send("\x03")
		client.sees(client.out, "interrupted\r\n")
		if err := client.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		client.wait()
		client = c.attach(transport, true)
		client.send("two\n")
		client.sees(client.out, "got two\r\n")
		c.stop(0)
		if code := client.wait(); code != 0 {
			t.Errorf("%s: at the container's end crictl ended with %d: %s", transport, code, client.out)
		}
	}
}

// A daemon that is stopped, or killed, ends the sessions; the containers keep
// stdin and terminal, and clients come back to the next daemon at once.
func TestAttachAcrossDaemons(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	plain := p.run("plain", echo, interactive)
	terminal := p.run("terminal", echo, interactive, tty)
	for i, end := range []func() error{n.Stop, n.Kill} {
		for _, transport := range []string{"spdy", "websocket"} {
			a, b := plain.attach(transport, false), terminal.attach(transport, true)
			text := transport + string(rune('0'+i))
			a.send(text + "\n")
			a.sees(a.out, "got "+text+"\n")
			b.send(text + "\n")
			b.sees(b.out, "got "+text+"\r\n")
			if err := end(); err != nil {
				t.Fatal(err)
			}
			for _, client := range []*crictl{a, b} {
				// One that stops says so. SPDY knows no end of a connection but its end, which crictl takes for the session's.
				code, said := client.wait(), client.out.String()+client.err.String()
				if stops := i == 0; stops && (code == 0 || !strings.Contains(said, "gantry is stopping; the container runs on")) {
					t.Errorf("%s: crictl ended with %d: %q", transport, code, said)
				}
			}
			if err := n.StartDaemon(n.context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := plain.status().GetState(); got != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("container is %s", got)
	}
}

// Clients that vanish from containers that write nothing leave nothing behind (CVE-2025-64329).
func TestAttachedClientsVanish(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	plain, terminal := p.run("plain", forever, interactive), p.run("terminal", forever, interactive, tty)
	count := func() [2]int { return [2]int{open(n.PID(), ""), open(n.SupervisorPIDs()[0], "")} }
	settled := func() (now [2]int) {
		n.eventually("it is quiet", func() bool {
			last := now
			now = count()
			return now == last && open(n.PID(), "/ptmx") == 1 // held for the supervisor's next
		})
		return now
	}
	before := settled()
	for range 5 {
		var clients []*crictl
		for _, transport := range []string{"spdy", "websocket"} {
			for range 3 {
				clients = append(clients, plain.attach(transport, false), terminal.attach(transport, true))
			}
		}
		n.eventually("they are attached", func() bool { return open(n.PID(), "/stdin") == 6 && open(n.PID(), "/ptmx") == 1+6 })
		for _, client := range clients {
			if err := client.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			client.wait()
		}
	}
	var after [2]int
	n.eventually("nothing is left of them", func() bool {
		after = count()
		return after[0] <= before[0] && after[1] <= before[1]
	})
	t.Logf("descriptors of daemon and supervisor before %v, after %v", before, after)
}

// A client who stops reading is cut off, and its connection closed; the container's log has all of it.
func TestAttachedClientStops(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	const line, lines = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde", 1 << 19 // 32 MiB
	for _, transport := range []string{"spdy", "websocket"} {
		c := p.run(transport, fmt.Sprintf("read x; yes %s | head -n %d; sleep 1000", line, lines), interactive)
		before := open(n.PID(), "")
		client := c.attach(transport, false)
		n.eventually("it is attached", func() bool { return open(n.PID(), "/stdin") == 1 })
		client.send("go\n")
		client.sees(client.out, line)
		if err := client.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		n.eventually("the log has all", func() bool {
			info, err := os.Stat(c.logPath())
			return err == nil && info.Size() == lines*int64(len("2006-01-02T15:04:05.000000000Z stdout F ")+len(line)+1)
		})
		n.eventually("the client's connection is closed", func() bool {
			return open(n.PID(), "") <= before+1 // but for that to the CRI's socket
		})
		if err := client.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if client.wait(); len(client.out.String()) >= lines*(len(line)+1) {
			t.Errorf("%s: the client was not cut off", transport)
		}
		c.stop(0)
	}
}

// open counts a process' descriptors of files whose names end so.
func open(pid int, name string) (n int) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if target, _ := os.Readlink(filepath.Join(dir, e.Name())); strings.HasSuffix(target, name) {
			n++
		}
	}
	return n
}

// A supervisor that is killed ends the sessions; containers keep stdin and
// terminal, which the daemon gives to the next one.
func TestAttachAcrossSupervisors(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	plain := p.run("plain", echo, interactive)
	terminal := p.run("terminal", echo, interactive, tty)
	first := p.run("first", "cat; echo end", once)
	stdin := strings.TrimSpace(first.exec("readlink", "/proc/1/fd/0"))
	for _, transport := range []string{"spdy", "websocket"} {
		n.eventually("a supervisor has the terminal", func() bool {
			pids := n.SupervisorPIDs()
			return len(pids) == 1 && open(pids[0], "/ptmx") > 0
		})
		a, b := plain.attach(transport, false), terminal.attach(transport, true)
		a.send(transport + "\n")
		a.sees(a.out, "got "+transport+"\n")
		b.send(transport + "\n")
		b.sees(b.out, "got "+transport+"\r\n")
		n.eventually("the daemon holds a terminal and a stdin, besides those of the sessions", func() bool {
			return open(n.PID(), "/ptmx") == 2 && open(n.PID(), "/stdin") == 1 && open(n.PID(), stdin) == 1
		})
		for _, pid := range n.SupervisorPIDs() {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		for _, client := range []*crictl{a, b} {
			code, said := client.wait(), client.out.String()+client.err.String()
			if code == 0 || !strings.Contains(said, "session ended with the supervisor, the container goes on") {
				t.Errorf("%s: crictl ended with %d: %q", transport, code, said)
			}
		}
	}
	client := first.attach("spdy", false)
	client.send("one\n")
	_ = client.in.Close()
	if code := client.wait(); code != 0 || client.out.String() != "one\nend\n" {
		t.Errorf("crictl ended with %d, wrote %q and %q", code, client.out, client.err)
	}
}
