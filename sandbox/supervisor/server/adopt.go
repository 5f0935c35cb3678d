package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/logcopy"
)

const (
	// reapWait is how long after the death of an adopted process its exit code may
	// take to be told: until its parent has waited for it.
	reapWait = 2 * time.Second
	// openWait is how long logs may take to be opened before containers are
	// taken over without them.
	openWait = 2 * time.Second
)

// adoptAll takes over what a predecessor left. Its assumptions: the
// predecessor is dead (the lock, which a child also holds until it has become
// an OCI runtime command), but for system calls on logs that hang, see hung; its runtime commands may go on, and name a file in
// the container's directory; container.json was written before anything of
// the container was made, and, with the process id, before anybody was told of it.
//
// With a handover the predecessor was this process: its commands have ended,
// and what it has handed over of a container takes the place of what is found.
func (s *Server) adoptAll(h *handover) error {
	var commands map[string][]int
	var err error
	if h == nil {
		if commands, err = s.runtimeCommands(); err != nil {
			return fmt.Errorf("looking for the predecessor's OCI runtimes: %w", err)
		}
	}
	left, damaged, err := s.pool.Recover()
	if err != nil {
		return err
	}
	for _, err := range damaged {
		s.log.Error("Output on its way to a log is lost", "err", err)
	}
	entries, err := os.ReadDir(s.containersDir())
	if err != nil {
		return fmt.Errorf("reading what containers there are: %w", err)
	}
	found := make([]adopted, len(entries))
	for i, e := range entries {
		if h.container(e.Name()) == nil {
			found[i] = s.find(e.Name(), left)
		}
	}
	patience, cancel := context.WithTimeout(context.Background(), openWait)
	defer cancel()
	for i, e := range entries {
		var err error
		if held := h.container(e.Name()); held != nil {
			err = s.inherit(held, left)
		} else {
			err = s.adopt(patience, found[i], commands[e.Name()], left)
		}
		if outOfDescriptors(err) { // it runs, and is taken over when there are more
			return fmt.Errorf("taking containers over: %w: raise the limit of the daemon, which starts the supervisor", err)
		}
		if notNow(err) {
			return fmt.Errorf("taking container %s over: %w: it runs, and is taken over when that can be read", e.Name(), err)
		}
		if err != nil {
			s.log.Error("Container record is set aside", "container", e.Name(), "err", err)
			if err := s.quarantine(e.Name()); err != nil {
				s.log.Error("Container record cannot be set aside", "container", e.Name(), "err", err)
			}
		}
	}
	for key, l := range left {
		s.log.Warn("Output of an unknown container is dropped", "container", key.ID)
		l.Discard()
	}
	return nil
}

// adopted is a container that is being taken over.
type adopted struct {
	*container
	err    error        // of reading its record
	opened <-chan error // gets the result of opening its log
}

// find reads a container's record and begins to open its log: all at a time, as some may hang.
func (s *Server) find(id string, left map[logcopy.Key]*logcopy.Leftover) (a adopted) {
	a.container = s.newContainer(id)
	if a.rec, a.err = s.readRecord(id); a.err != nil || a.rec.PID == 0 {
		return a
	}
	var after <-chan struct{}
	if left[logcopy.Key{ID: id, Stream: "stdout"}].InWrite() || left[logcopy.Key{ID: id, Stream: "stderr"}].InWrite() {
		after = s.hung // the predecessor's write may still come
	}
	req := &a.rec.Request
	a.file, a.opened = s.pool.OpenLater(req.LogDir, req.LogPath, req.LogMax, after, a.log)
	return a
}

// awaitLog waits for the log to be open, or for patience to end. Its error is of having no descriptors.
func (a adopted) awaitLog(patience context.Context) error {
	told := func(err error) {
		if err != nil {
			a.log.Error("Log cannot be opened, output is dropped until it is reopened", "err", err)
		}
	}
	var err error
	select {
	case err = <-a.opened:
	case <-patience.Done():
		if len(a.opened) == 0 {
			a.log.Warn("Log's file system does not answer, output is dropped until it does")
			go func() { told(<-a.opened) }()
			return nil
		}
		err = <-a.opened
	}
	if outOfDescriptors(err) {
		return err
	}
	told(err)
	return nil
}

// adopt takes one container over. An error says that its record is of no use.
func (s *Server) adopt(patience context.Context, c adopted, commands []int, left map[logcopy.Key]*logcopy.Leftover) error {
	if errors.Is(c.err, fs.ErrNotExist) { // made just before the record, or all but deleted
		return os.RemoveAll(c.dir)
	} else if c.err != nil {
		return c.err
	}
	s.mu.Lock()
	s.containers[c.id] = c.container
	s.mu.Unlock()
	if c.rec.PID == 0 {
		c.inBackground(func() {
			waitCommands(commands)
			if err := c.undo(); err != nil {
				c.log.Error("Half-made container is left", "err", err)
			}
		})
		return nil
	}
	execs, _ := filepath.Glob(filepath.Join(c.dir, "exec-*"))
	if len(commands)+len(execs) > 0 {
		c.inBackground(func() {
			if waitCommands(commands) {
				thaw(c.rec.Request.CgroupProcs) // a checkpoint may have been among them, see there
			}
			c.killBrokenExecs(execs)
		})
	}
	if err := c.awaitLog(patience); err != nil {
		return err
	}
	return c.adoptStarted(left)
}

// readRecord reads a container's record. Without one, it is fs.ErrNotExist.
func (s *Server) readRecord(id string) (r record, err error) {
	if err := checkID(id); err != nil {
		return r, err
	}
	if err := readFile(filepath.Join(s.containersDir(), id), recordFile, &r); err != nil {
		return r, err
	}
	switch {
	case r.Version != recordVersion:
		return r, fmt.Errorf("version %d of container.json is not %d", r.Version, recordVersion)
	case r.Request.ID != id:
		return r, fmt.Errorf("container.json is of container %q", r.Request.ID)
	}
	return r, r.check(s.bootID)
}

// inBackground runs f with the container's lock, which nobody else has yet. An
// upgrade waits for it: the next program does not look for the predecessor's commands again.
func (c *container) inBackground(f func()) {
	c.op <- struct{}{}
	c.srv.gate.Join()
	c.srv.begin() // cannot be refused: nothing has stopped the server yet
	go func() {
		defer c.srv.end()
		defer c.srv.gate.Leave()
		defer c.unlock()
		f()
	}()
}

// waitCommands waits until the commands have ended; those that hang are killed, and whether one was it reports.
func waitCommands(pids []int) (killed bool) {
	end := time.Now().Add(killTimeout)
	for _, pid := range pids {
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		p := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		for p[0].Revents == 0 && time.Now().Before(end) {
			_, _ = unix.Poll(p, int(time.Until(end).Milliseconds())+1)
		}
		if p[0].Revents == 0 {
			killed = true
			_ = unix.Kill(-pid, unix.SIGKILL) // its group, if it leads one; it lives, so that the number is its own
			_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
			_, _ = unix.Poll(p, int(killTimeout.Milliseconds()))
		}
		_ = unix.Close(pidfd)
	}
	return killed
}

// notNow says whether err is of the machine's state, and says nothing of a
// container: to take it for ended, or its record for damaged, would be wrong.
func notNow(err error) bool {
	return outOfDescriptors(err) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EIO)
}

// adoptStarted goes on with a container that had been started. Its error is one of notNow.
func (c *container) adoptStarted(left map[logcopy.Key]*logcopy.Leftover) error {
	c.state = running
	alive, err := c.openPID()
	if err != nil {
		return err
	}
	exit, err := c.readExit()
	if notNow(err) {
		return err
	}
	if err == nil {
		alive = false
	} else {
		exit = supervisor.Exit{ID: c.id, PID: c.rec.PID, Code: unknownCode, At: time.Now(), Reason: "exit status unknown: it ended while no supervisor ran"}
	}
	if err := c.adoptOutput(left, alive); err != nil {
		return err
	}
	if !alive {
		c.handle(exit)
		return nil
	}
	if c.rec.Request.Terminal {
		c.log.Warn("Terminal of the container is lost with the supervisor that had it, unless a daemon gives it back")
	}
	return c.watchOrphan()
}

// watchOrphan watches a process that is not a child by its pidfd.
func (c *container) watchOrphan() error {
	fd, err := unix.FcntlInt(uintptr(c.pidfd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("watching the container's process: %w", err)
	}
	go c.watchAdopted(os.NewFile(uintptr(fd), "pidfd")) // non-blocking, as c.pidfd: under the poller
	return nil
}

// openPID opens the pidfd of the container's process, if that is still the one of the record.
func (c *container) openPID() (alive bool, err error) {
	if c.rec.BootID != c.srv.bootID {
		return false, nil
	}
	pidfd, err := unix.PidfdOpen(c.rec.PID, unix.PIDFD_NONBLOCK)
	if notNow(err) {
		return false, err
	}
	if err != nil {
		return false, nil
	}
	// Compared after the opening: the descriptor is of this process, whichever that is.
	stat, err := readStat(c.rec.PID)
	if err != nil || stat.startTime != c.rec.StartTime {
		_ = unix.Close(pidfd)
		if !notNow(err) {
			err = nil
		}
		return false, err
	}
	c.pidfd = pidfd
	return true, nil
}

// adoptOutput goes on copying, from the FIFOs or, when the container has ended,
// from what a predecessor had read of them.
func (c *container) adoptOutput(left map[logcopy.Key]*logcopy.Leftover, alive bool) error {
	if c.rec.Request.Stdin && alive && !c.rec.Request.Terminal && !c.rec.StdinEnded {
		f, err := c.openStdin()
		if notNow(err) {
			return err
		}
		if err == nil {
			c.input = f
		}
	}
	for _, name := range []string{"stdout", "stderr"} {
		c.file.Owe(left[logcopy.Key{ID: c.id, Stream: name}])
	}
	for _, name := range []string{"stdout", "stderr"} {
		key := logcopy.Key{ID: c.id, Stream: name}
		l := left[key]
		delete(left, key)
		src, err := openFIFO(filepath.Join(c.dir, name), unix.O_RDONLY, true)
		if notNow(err) {
			return err
		}
		if err == nil {
			var copier *logcopy.Copier
			if copier, err = logcopy.Start(src, key, c.file, c.srv.pool, l, !alive, c.log); err == nil {
				c.copiers = append(c.copiers, copier)
				continue
			}
		}
		if l != nil {
			l.Flush(key, c.file, c.srv.pool, c.log)
		}
		if !c.rec.Request.Terminal {
			c.log.Error("Output of the container cannot be read", "err", err)
		}
	}
	return nil
}

// watchAdopted waits for the end of a process that is not a child. It ends
// with the process, or with the server's.
func (c *container) watchAdopted(f *os.File) {
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		c.log.Error("End of the container will not be noticed", "err", err)
		return
	}
	exit := supervisor.Exit{ID: c.id, PID: c.rec.PID, Code: unknownCode, Reason: "exit status unknown: it was a child of a supervisor that had been killed"}
	_ = raw.Read(func(fd uintptr) bool { return polled(int(fd), unix.POLLIN) })
	exit.At = time.Now()
	c.srv.gate.Join() // an upgrade meanwhile might be too late to be told by the kernel
	defer c.srv.gate.Leave()
	if status, ok := exitStatus(f, c.rec.PID); ok {
		exit.Reason = ""
		exit.Code = 128 + int(status.Signal())
		if status.Exited() {
			exit.Code = status.ExitStatus()
		}
	}
	exit.OOM = c.diedOfOOM(exit.Code)
	c.handle(exit)
}

// exitStatus asks the kernel for the wait status of a process that has ended:
// of a zombie in /proc, afterwards by PIDFD_GET_INFO (Linux 6.15).
func exitStatus(pidfd *os.File, pid int) (status unix.WaitStatus, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), reapWait)
	defer cancel()
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return 0, false
	}
	for ctx.Err() == nil {
		if stat, err := readStat(pid); err == nil && stat.state == 'Z' {
			return unix.WaitStatus(stat.exitCode), true
		}
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		cerr := raw.Control(func(fd uintptr) { err = unix.IoctlPidfdInfo(int(fd), &info) })
		if cerr == nil && err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
			return unix.WaitStatus(info.Exit_code), true
		}
		if err != nil && !errors.Is(err, unix.ESRCH) { // a kernel that does not know
			return 0, false
		}
		time.Sleep(time.Millisecond)
	}
	return 0, false
}

func polled(fd int, events int16) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	_, _ = unix.Poll(p, 0)
	return p[0].Revents != 0
}

// killBrokenExecs kills what exec calls of the predecessor, whose files are
// given, have left running, and removes the files.
func (c *container) killBrokenExecs(files []string) {
	for _, file := range files {
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(file, ".json"), ".pid"), ".log")
		if pid, err := readPIDFile(base + ".pid"); err == nil {
			pids, _ := cgroupPIDs(head(c.rec.Request.CgroupProcs, 1))
			for _, p := range pids {
				// One that the number has passed to since is most likely in the container's session. The
				// process itself may have been killed already, and others of its session not.
				if leader, ok := c.execSession(p); ok && (p == pid || leader == pid) {
					c.killExec(pid)
					break
				}
			}
		}
		for _, suffix := range []string{".pid", ".json", ".log"} {
			_ = os.Remove(base + suffix)
		}
	}
}

// quarantine moves a container's directory out of the way.
func (s *Server) quarantine(id string) error {
	dir := filepath.Join(s.dir, "quarantine")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Rename(filepath.Join(s.containersDir(), id), filepath.Join(dir, fmt.Sprintf("%s.%d", id, time.Now().UnixNano())))
}
