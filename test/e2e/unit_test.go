package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// TestServiceManager: a daemon says when it answers and when it stops, and neither it nor what it starts can be taken
// for another that says so.
func TestServiceManager(t *testing.T) {
	harness.Require(t)
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	heard := make(chan string, 1<<16) // never full: a manager that does not read is not heard at the end
	go func() {
		defer close(heard)
		for buf := make([]byte, 4096); ; {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			heard <- string(buf[:n])
		}
	}()
	wait := func(what string) {
		t.Helper()
		for late := time.After(time.Minute); ; {
			select {
			case said, ok := <-heard:
				if strings.HasPrefix(said, what) {
					return
				}
				if !ok {
					t.Fatalf("nothing more is heard before %q", what)
				}
			case <-late:
				t.Fatalf("waited in vain for %q", what)
			}
		}
	}
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "4000000")
	n := newNode(t)
	t.Setenv("NOTIFY_SOCKET", "") // of the daemons that are started for the audit
	wait("READY=1\nWATCHDOG=1\n")
	wait("WATCHDOG=1\n")
	c := n.runPod("pod").run("c", forever)
	pids := append(n.SupervisorPIDs(), c.pid())
	for _, pid := range pids {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil || bytes.Contains(env, []byte("NOTIFY_SOCKET")) || bytes.Contains(env, []byte("WATCHDOG")) {
			t.Errorf("process %d has the environment %q, %v", pid, env, err)
		}
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	wait("STOPPING=1\n")
	if err := n.StartDaemon(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestInstall installs into a folder what systemd finds no fault with.
func TestInstall(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("needs systemd-analyze: ", err)
	}
	repo, err := harness.Repository()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := harness.Gantry(t.Context(), "version"); err != nil { // which is built for that
		t.Fatal(err)
	}
	prefix := filepath.Join(t.TempDir(), "prefix")
	cmd := exec.CommandContext(t.Context(), filepath.Join(repo, "hack/install.sh"))
	cmd.Env = append(os.Environ(), "PREFIX="+prefix, "DESTDIR=", "GANTRY_TEST_PREBUILT=1") // others run what a build would replace
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(prefix, "bin/gantry"), "version").CombinedOutput()
	if err != nil {
		t.Errorf("gantry version: %v: %s", err, out)
	}
	// It looks for the binaries too.
	out, err = exec.CommandContext(t.Context(), "systemd-analyze", "verify", filepath.Join(prefix, "lib/systemd/system/gantry.service")).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze verify: %v", err)
	}
	newer := regexp.MustCompile(`Unknown key.*'Restart(Steps|MaxDelaySec)'`) // than systemd 253
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "gantry") && !newer.MatchString(line) {
			t.Errorf("systemd-analyze verify: %s", line)
		}
	}
}

const (
	unitName = "gantry-test.service"
	unitFile = "/run/systemd/system/" + unitName
)

// unit is an instance whose daemon is systemd's.
type unit struct {
	*node
	text string // of the unit's file
}

func systemctl(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (u *unit) property(name string) string {
	u.t.Helper()
	return systemctl(u.t, "show", "--value", "--property="+name, unitName)
}

func (u *unit) mainPID() int {
	u.t.Helper()
	pid, err := strconv.Atoi(u.property("MainPID"))
	if err != nil || pid == 0 {
		u.t.Fatalf("the unit has the process %d, %v", pid, err)
	}
	return pid
}

// newUnit has systemd start the instance's daemon by the unit of hack/, in the tests' namespaces.
func newUnit(n *node) *unit {
	n.t.Helper()
	u := &unit{node: n}
	repo, err := harness.Repository()
	if err != nil {
		n.t.Fatal(err)
	}
	body, err := os.ReadFile(filepath.Join(repo, "hack/gantry.service"))
	if err != nil {
		n.t.Fatal(err)
	}
	u.text = string(body)
	ns := fmt.Sprintf("/proc/%d/ns/", os.Getpid())
	argv := append([]string{"/usr/bin/nsenter", "--mount=" + ns + "mnt", "--net=" + ns + "net", "--ipc=" + ns + "ipc", "--"}, n.Command()...)
	u.change(`\nExecStart=.*`, "\nExecStart="+strings.Join(argv, " ")+"\nStandardError=append:"+u.logFile())
	u.change(`\n\[Unit\]`, "\n[Unit]\nDefaultDependencies=no") // the virtual machine has no more than the tests need
	n.t.Cleanup(func() {
		systemctl(n.t, "stop", unitName)
		if n.t.Failed() {
			log, _ := os.ReadFile(u.logFile())
			n.t.Logf("the unit's log ends:\n%s", log[max(0, len(log)-8000):])
		}
		_ = os.Remove(unitFile)
		systemctl(n.t, "daemon-reload")
		n.eventually("the unit's supervisor is gone", func() bool {
			pids := u.supervisors()
			for _, pid := range pids {
				_ = unix.Kill(pid, unix.SIGTERM) // it may end by itself
			}
			return len(pids) == 0
		})
	})
	u.write()
	systemctl(n.t, "start", unitName)
	u.answering()
	return u
}

// change changes the one place of the unit's text that matches; write tells systemd.
func (u *unit) change(pattern, with string) {
	u.t.Helper()
	re := regexp.MustCompile(pattern)
	if len(re.FindAllString(u.text, -1)) != 1 {
		u.t.Fatalf("the unit has not one of %q:\n%s", pattern, u.text)
	}
	u.text = re.ReplaceAllLiteralString(u.text, with)
}

func (u *unit) write() {
	u.t.Helper()
	if err := os.WriteFile(unitFile, []byte(u.text), 0o644); err != nil {
		u.t.Fatal(err)
	}
	systemctl(u.t, "daemon-reload")
}

func (u *unit) logFile() string { return filepath.Join(u.LogDir, "unit.log") }

// processes are those in the unit's cgroup.
func (u *unit) processes() []string {
	procs, err := os.ReadFile("/sys/fs/cgroup/system.slice/" + unitName + "/cgroup.procs")
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
		u.t.Fatal(err)
	}
	return strings.Fields(string(procs))
}

func (u *unit) answering() {
	u.t.Helper()
	u.eventually("the daemon answers", func() bool {
		_, err := u.Runtime.Status(u.context(), &runtimeapi.StatusRequest{})
		return err == nil
	})
}

// replaced waits until the unit's daemon is another one, which answers.
func (u *unit) replaced(old int) {
	u.t.Helper()
	u.eventually("there is another daemon", func() bool {
		pids := u.processes()
		return len(pids) > 0 && !slices.Contains(pids, strconv.Itoa(old))
	})
	u.answering()
}

// supervisors are the process ids of the instance's supervisors, whoever their parents are.
func (u *unit) supervisors() (pids []int) {
	u.t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		u.t.Fatal(err)
	}
	for _, file := range files {
		line, _ := os.ReadFile(file) // it may be gone
		program, args, _ := bytes.Cut(line, []byte{0})
		if filepath.Base(string(program)) == "gantry-supervisor" && bytes.HasPrefix(args, []byte("--dir\x00"+u.Dir+"/")) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				u.t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// inherited is what a process has of those that it descends from, but for what a spec says; of a container's first
// process and of a command in it.
func (p *pod) inherited(name string) string {
	p.t.Helper()
	const script = `grep -E '^(Sig(Ign|Blk)|Cap|NoNewPrivs|Seccomp)' /proc/self/status; cat /proc/self/oom_score_adj /proc/self/limits; umask`
	c := p.run(name, script+"; echo; "+forever)
	c.eventually("it has written", func() bool { return strings.HasSuffix(c.logged("stdout"), "\n\n") })
	return c.logged("stdout") + c.exec("sh", "-c", script)
}

// TestSystemdUnit: containers neither need nor notice what systemd does to the daemon's unit.
func TestSystemdUnit(t *testing.T) {
	if os.Getenv("GANTRY_TEST_CGROUP_DRIVER") != "systemd" {
		t.Skip("needs a systemd for itself: hack/test-vm.sh systemd")
	}
	n := newNode(t)
	byHand := &pod{node: n, config: n.podConfig("by-hand")} // not runPod's, which would ask this daemon at the test's end
	resp, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: byHand.config})
	if err != nil {
		t.Fatal(err)
	}
	byHand.id = resp.GetPodSandboxId()
	want := byHand.inherited("c")
	if err := n.removePod(byHand.id); err != nil {
		t.Fatal(err)
	}
	supervisors := n.SupervisorPIDs()
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range supervisors {
		_ = unix.Kill(pid, unix.SIGTERM) // it may have ended by itself
	}
	n.eventually("the supervisor is gone", func() bool { harness.Reap(); return len(n.SupervisorPIDs()) == 0 })

	u := newUnit(n)
	p := u.runPod("pod")
	if got := p.inherited("inherited"); got != want {
		t.Errorf("a container has of the unit:\n%s\nand of a shell:\n%s", got, want)
	}
	gates := filepath.Join(n.Dir, "logs", "gates")
	if err := os.Mkdir(gates, 0o755); err != nil {
		t.Fatal(err)
	}
	counting := p.run("counting", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done")
	leaving := map[int32]*container{}
	for code := range int32(3) {
		script := fmt.Sprintf("until [ -e /gates/%d ]; do sleep 0.05; done; echo leaving; exit %d", code, 10+code)
		leaving[code] = p.run(fmt.Sprintf("leaving%d", code), script, func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: gates, ContainerPath: "/gates"}}
		})
	}
	leave := func(code int32) {
		if err := os.WriteFile(filepath.Join(gates, strconv.Itoa(int(code))), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	container := counting.pid()
	supervisors = u.supervisors()
	if len(supervisors) != 1 {
		t.Fatalf("supervisors: %v", supervisors)
	}
	cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", supervisors[0]))
	if err != nil || !regexp.MustCompile(`/gantry-supervisor-\w+\.scope\n`).Match(cgroup) {
		t.Errorf("the supervisor is in the cgroup %q, %v", cgroup, err)
	}
	if s := u.property("StatusText"); s != "Serving the CRI on "+n.Socket {
		t.Errorf("the unit's status is %q", s)
	}
	same := func(after string, code int32) {
		t.Helper()
		if s := leaving[code].waitExit(); s.GetExitCode() != 10+code {
			t.Errorf("%s: a container that left meanwhile: %v, want the exit code %d", after, s, 10+code)
		}
		if got := leaving[code].logged("stdout"); got != "leaving\n" {
			t.Errorf("%s: it has logged %q", after, got)
		}
		if got := counting.pid(); got != container {
			t.Errorf("%s: the container is process %d, was %d", after, got, container)
		}
		if got := u.supervisors(); !slices.Equal(got, supervisors) {
			t.Errorf("%s: supervisors %v, before: %v", after, got, supervisors)
		}
		if s := counting.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("%s: the container is %v", after, s)
		}
	}

	old := u.mainPID()
	systemctl(t, "kill", "--signal=KILL", unitName) // all that is in the unit's cgroup
	leave(0)
	u.replaced(old)
	same("systemctl kill", 0)

	// A short watchdog for the daemon that will be stuck, and not for the next one: the machine may stand still for seconds.
	old = u.mainPID()
	u.change(`\nWatchdogSec=60\n`, "\nWatchdogSec=6\n")
	u.write()
	leave(1)
	systemctl(t, "restart", unitName)
	stuck := u.mainPID()
	if err := unix.Kill(stuck, unix.SIGSTOP); err != nil || stuck == old {
		t.Fatalf("stopping the daemon, process %d, before the restart %d: %v", stuck, old, err)
	}
	u.change(`\nWatchdogSec=6\n`, "\nWatchdogSec=60\n")
	u.write()
	u.replaced(stuck)
	same("the restart and the watchdog's", 1)
	if log, err := os.ReadFile(u.logFile()); err != nil || !bytes.Contains(log, []byte("SIGABRT: abort")) {
		t.Errorf("the stuck daemon has left no stacks in the log: %v", err)
	}

	systemctl(t, "stop", unitName)
	if state, result := u.property("ActiveState"), u.property("Result"); state != "inactive" || result != "success" {
		t.Errorf("stopped, the unit is %s with %s", state, result)
	}
	if left := u.processes(); len(left) > 0 {
		t.Errorf("the stopped unit has left the processes %v", left)
	}
	lines := len(counting.log())
	leave(2)
	n.eventually("the container logs on", func() bool { return len(counting.log()) > lines+5 })
	systemctl(t, "start", unitName)
	u.answering()
	same("systemctl stop", 2)

	counting.stop(0)
	var numbers []string
	for i := range len(counting.log()) {
		numbers = append(numbers, strconv.Itoa(i+1))
	}
	if got := strings.Fields(counting.logged("stdout")); !slices.Equal(got, numbers) {
		t.Errorf("the log of %d lines is not whole: %q", len(numbers), got)
	}
}
