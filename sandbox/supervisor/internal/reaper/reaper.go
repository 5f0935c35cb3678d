package reaper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/gate"
)

// Exit is the end of a process.
type Exit struct {
	PID    int
	Status unix.WaitStatus
	At     time.Time
}

// Code is the exit code, or 128+n after signal n.
func (e Exit) Code() int {
	if e.Status.Signaled() {
		return 128 + int(e.Status.Signal())
	}
	return e.Status.ExitStatus()
}

// Reaper is made by [New]; its methods may be called concurrently.
type Reaper struct {
	gate *gate.Gate

	// mu is held while a process is started and while one is waited for, so
	// that an exit is always handled after its start has been noted.
	mu      sync.Mutex
	waiting map[int]func(Exit)

	// While a hold is open, exits that nobody waits for are kept: one may be
	// that of a process whose number is still to be read from a pid file.
	clock uint64
	holds map[uint64]struct{}
	early map[int]earlyExit
}

type earlyExit struct {
	Exit
	clock uint64
}

// New makes this process a subreaper. Call Run to have anything reaped. While g
// is shut nothing is, so that who executes another program then leaves every exit to that.
func New(g *gate.Gate) (*Reaper, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("becoming a subreaper: %w", err)
	}
	return &Reaper{
		gate:    g,
		waiting: make(map[int]func(Exit)),
		holds:   make(map[uint64]struct{}),
		early:   make(map[int]earlyExit),
	}, nil
}

// Run reaps until stop is closed.
func (r *Reaper) Run(stop <-chan struct{}) {
	c := make(chan os.Signal, 1) // one is enough: each one has all children looked at
	signal.Notify(c, unix.SIGCHLD)
	defer signal.Stop(c)
	for {
		for r.reapOne() {
		}
		select {
		case <-c:
		case <-stop:
			return
		}
	}
}

func (r *Reaper) reapOne() bool {
	r.gate.Join() // those inside may wait for an exit
	defer r.gate.Leave()
	r.mu.Lock()
	var status unix.WaitStatus
	pid, err := unix.Wait4(-1, &status, unix.WNOHANG|unix.WALL, nil)
	if errors.Is(err, unix.EINTR) {
		r.mu.Unlock()
		return true
	}
	if err != nil || pid <= 0 { // ECHILD, or none has ended
		r.mu.Unlock()
		return false
	}
	e := Exit{PID: pid, Status: status, At: time.Now()}
	f := r.waiting[pid]
	delete(r.waiting, pid)
	if f == nil && len(r.holds) > 0 {
		r.early[pid] = earlyExit{e, r.clock}
	}
	r.mu.Unlock()
	if f != nil {
		f(e)
	}
	return true
}

// Start starts a process; its exit comes on the channel.
func (r *Reaper) Start(path string, argv []string, attr *syscall.ProcAttr) (pid int, done <-chan Exit, err error) {
	c := make(chan Exit, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err = syscall.ForkExec(path, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	delete(r.early, pid) // that was another one
	r.waiting[pid] = func(e Exit) { c <- e }
	return pid, c, nil
}

// KillGroup sends SIGKILL to the process group of a process started by Start,
// unless that has ended.
func (r *Reaper) KillGroup(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.waiting[pid]; ok {
		_ = unix.Kill(-pid, unix.SIGKILL)
	}
}

// Hold has exits kept that nobody waits for, until release is called.
func (r *Reaper) Hold() (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock++
	at := r.clock
	r.holds[at] = struct{}{}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.holds, at)
		oldest := r.clock + 1
		for h := range r.holds {
			oldest = min(oldest, h)
		}
		for pid, e := range r.early {
			if e.clock < oldest {
				delete(r.early, pid)
			}
		}
	}
}

// adoptWait is how long a process may take to become a child of this one.
const adoptWait = 10 * time.Second

// Notify has f called when the process has ended, which may be now, in the
// caller, when it ended during the caller's Hold. It reports whether the
// process is a child of this one, or was; otherwise f is never called. f must not block.
//
// A descendant is waited for until it is a child: crun's run --detach ends when
// the container is started, which is before the end of crun's second process,
// whose child the container is.
func (r *Reaper) Notify(pid int, f func(Exit)) bool {
	for deadline := time.Now().Add(adoptWait); ; time.Sleep(time.Millisecond) {
		if r.notify(pid, f) {
			return true
		}
		if !descends(pid) { // or it has been a child and has ended between the two looks
			return r.notify(pid, f)
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

func (r *Reaper) notify(pid int, f func(Exit)) bool {
	r.mu.Lock()
	if e, ok := r.early[pid]; ok {
		delete(r.early, pid)
		r.mu.Unlock()
		f(e.Exit)
		return true
	}
	// A zombie counts as a child too; WNOWAIT leaves it to reapOne.
	err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
	if err == nil {
		r.waiting[pid] = f
	}
	r.mu.Unlock()
	return err == nil
}

// descends says whether the process has this one among its ancestors.
func descends(pid int) bool {
	for own := os.Getpid(); pid > 1; {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			return false
		}
		// "pid (name) state parent ...", and the name may have any byte (proc(5)).
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 {
			return false
		}
		if pid, err = strconv.Atoi(fields[1]); err != nil {
			return false
		}
		if pid == own {
			return true
		}
	}
	return false
}
