package harness

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// process is one row of /proc.
type process struct {
	pid, parent, session int
	zombie               bool
	command              string // name and arguments, or [name] where there are none
}

func (p process) String() string {
	if p.zombie {
		return fmt.Sprintf("zombie %d %s", p.pid, p.command)
	}
	return fmt.Sprintf("process %d %s", p.pid, p.command)
}

// readProcess reads /proc/<pid>/stat: the name in parentheses may itself hold any byte, so fields count from the
// last parenthesis (proc(5)).
func readProcess(pid int) (process, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if err != nil || open < 0 || end < open {
		return process{}, false
	}
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) < 4 {
		return process{}, false
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return process{}, false
	}
	session, err := strconv.Atoi(fields[3])
	if err != nil {
		return process{}, false
	}
	p := process{pid: pid, parent: parent, session: session, zombie: fields[0] == "Z", command: "[" + string(stat[open+1:end]) + "]"}
	if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(line) > 0 {
		p.command = string(bytes.ReplaceAll(bytes.TrimRight(line, "\x00"), []byte{0}, []byte{' '}))
	}
	return p, true
}

// descendants lists the living and dead processes below root, parents before their children.
func descendants(root int) []process {
	children := map[int][]process{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if p, ok := readProcess(pid); ok {
				children[p.parent] = append(children[p.parent], p)
			}
		}
	}
	var list []process
	for queue := children[root]; len(queue) > 0; queue = queue[1:] {
		list = append(list, queue[0])
		queue = append(queue, children[queue[0].pid]...)
	}
	return list
}

// Pid is the process id in the verbose part of a container's status; 0: it does not run.
func Pid(status *runtimeapi.ContainerStatusResponse) (int, error) {
	var info struct {
		PID int `json:"pid"`
	}
	err := json.Unmarshal([]byte(status.GetInfo()["info"]), &info)
	return info.PID, err
}

// daemons are the processes that an exec.Cmd of an instance waits for.
type daemons struct {
	mu   sync.Mutex
	pids map[int]bool
}

var waited = daemons{pids: map[int]bool{}}

// start starts a daemon in a session of its own, as systemd does: what it leaves when it is killed is in there too.
func (d *daemons) start(cmd *exec.Cmd) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	d.pids[cmd.Process.Pid] = true
	return nil
}

// wait returns when the daemon has ended; its outcome is in cmd.ProcessState.
func (d *daemons) wait(cmd *exec.Cmd) {
	_ = cmd.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.pids, cmd.Process.Pid)
}

// Reap collects the dead processes that fell to this subreaper. Those that an exec.Cmd of the tests waits
// for are in the tests' session, or daemons; what these start, supervisors and containers are in other sessions.
func Reap() {
	own, err := unix.Getsid(0)
	if err != nil {
		return
	}
	waited.mu.Lock()
	defer waited.mu.Unlock()
	for _, p := range descendants(os.Getpid()) {
		if p.zombie && p.parent == os.Getpid() && p.session != own && !waited.pids[p.pid] {
			_, _ = unix.Wait4(p.pid, nil, unix.WNOHANG, nil) // nobody else waits for it
		}
	}
}
