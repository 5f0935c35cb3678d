package killpoint

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// syscallStop is the stop signal of a system call's entry or exit under PTRACE_O_TRACESYSGOOD.
const syscallStop = unix.SIGTRAP | 0x80

// tracer is the process that traces. All of it runs on one thread, as ptrace wants it.
type tracer struct {
	pid, pidfd int
	n          int
	after      bool
	only       []string

	threads map[int]bool // id -> has made its first stop, from which on its system calls stop too
	ready   bool
	count   int
	dying   int // thread whose change is the N-th, until it has been made
	killed  atomic.Bool
}

// runTracer is a process made by Attach. It ends with the traced process, or with its standard input: the kernel then
// lets all threads go on.
func runTracer(job string) error {
	runtime.LockOSThread()
	t := &tracer{threads: map[int]bool{}}
	var when, only string
	if n, _ := fmt.Sscan(job, &t.pid, &t.n, &when, &only); n < 3 {
		return fmt.Errorf("%s=%q", tracerEnv, job)
	}
	t.after = when == "after"
	if only != "" {
		t.only = strings.Split(only, ",")
	}
	var err error
	if t.pidfd, err = unix.PidfdOpen(t.pid, 0); err != nil {
		return fmt.Errorf("opening the process: %w", err)
	}
	if err := t.seize(); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		if !t.killed.Load() { // else its end is waited for
			os.Exit(0)
		}
	}()
	return t.loop()
}

// seize takes all threads over: new ones follow by themselves, those that were being made meanwhile are found by
// looking again.
func (t *tracer) seize() error {
	const options = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACESYSGOOD
	for found := true; found; {
		found = false
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", t.pid))
		if err != nil {
			return err
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if _, known := t.threads[tid]; known || err != nil {
				continue
			}
			switch err := ptrace(unix.PTRACE_SEIZE, tid, 0, options); {
			case err == nil:
				t.threads[tid], found = false, true
				if err := ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("stopping thread %d: %w", tid, err)
				}
			case errors.Is(err, unix.ESRCH): // it has ended
			case errors.Is(err, unix.EPERM) && len(t.threads) > 0: // followed since its creation by one of the others
			default:
				return fmt.Errorf("tracing thread %d: %w", tid, err)
			}
		}
	}
	return nil
}

func (t *tracer) loop() error {
	for {
		t.tellReady()
		var status unix.WaitStatus
		tid, err := unix.Wait4(-1, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			return nil
		case err != nil:
			return fmt.Errorf("waiting: %w", err)
		case !status.Stopped():
			delete(t.threads, tid)
			if tid == t.pid { // ends last
				return nil
			}
			continue
		}
		if err := t.stopped(tid, status); err != nil && !errors.Is(err, unix.ESRCH) { // killed meanwhile
			return fmt.Errorf("thread %d: %w", tid, err)
		}
	}
}

func (t *tracer) tellReady() {
	for _, stopped := range t.threads {
		if !stopped {
			return
		}
	}
	if !t.ready {
		t.ready = true
		fmt.Println(wordReady)
	}
}

// stopped handles one stop of a thread and lets it go on.
func (t *tracer) stopped(tid int, status unix.WaitStatus) error {
	t.threads[tid] = true
	signal, event := status.StopSignal(), int(status)>>16
	switch {
	case signal == syscallStop:
		if err := t.atCall(tid); err != nil {
			return err
		}
		if t.killed.Load() {
			return nil // and stays where it is: SIGKILL ends a stop
		}
		return ptrace(unix.PTRACE_SYSCALL, tid, 0, 0)
	case event == unix.PTRACE_EVENT_STOP && signal != unix.SIGTRAP: // SIGSTOP: stopped it stays
		return ptrace(unix.PTRACE_LISTEN, tid, 0, 0)
	case event != 0:
		return ptrace(unix.PTRACE_SYSCALL, tid, 0, 0)
	}
	return ptrace(unix.PTRACE_SYSCALL, tid, 0, uintptr(signal)) // a signal: the Go runtime sends many
}

// call is struct ptrace_syscall_info of ptrace(2).
type call struct {
	op   uint8
	_    [3]byte
	arch uint32
	_    [2]uint64 // instruction and stack pointers
	nr   uint64    // at the exit, the result
	args [6]uint64
}

const (
	opEntry = 1 // PTRACE_SYSCALL_INFO_ENTRY
	opExit  = 2
)

// atCall counts, and kills.
func (t *tracer) atCall(tid int) error {
	var c call
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(c), uintptr(unsafe.Pointer(&c)), 0, 0); errno != 0 {
		return errno
	}
	if c.op == opExit && t.dying == tid {
		return t.kill()
	}
	if c.op != opEntry || t.killed.Load() {
		return nil
	}
	what := t.change(tid, c)
	if what == "" {
		return nil
	}
	t.count++
	if t.n > 0 && t.count > t.n {
		return nil // made by another thread before the N-th was done
	}
	fmt.Println(wordChange, what)
	switch {
	case t.count != t.n:
		return nil
	case t.after:
		t.dying = tid
		return nil
	}
	return t.kill() // the kernel leaves the call undone
}

func (t *tracer) kill() error {
	t.killed.Store(true)
	if err := unix.PidfdSendSignal(t.pidfd, unix.SIGKILL, nil, 0); err != nil {
		return err
	}
	fmt.Println(wordKilled)
	return nil
}

// change describes a call that counts; of others it returns "".
func (t *tracer) change(tid int, c call) string {
	k, known := calls[c.nr]
	if !known || len(t.only) > 0 && !slices.Contains(t.only, k.name) {
		return ""
	}
	return k.describe(t, tid, c.args)
}

func ptrace(request, tid int, addr, data uintptr) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
