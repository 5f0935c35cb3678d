package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/supervisor"
	"github.com/gantry-cri/gantry/sandbox/supervisor/internal/wire"
)

// handoverVersion is that of all that one build hands to another: the
// description below, the containers' records, the staging slots. A program that
// does not know it is not handed anything, which its check says beforehand; that
// it refuses fields that it does not know is not enough for that, as the check
// may see none of those that come later. So each change raises it, and the file
// in testdata says what it is a version of; readHandover is then to take the one before as well.
const handoverVersion = 1

// maxHandover bounds a description, in bytes: some 300 for each container.
const maxHandover = 64 << 20

// handover describes, in JSON in a file in memory, what a supervisor that
// becomes another program leaves to that besides the files: its descriptors,
// under their numbers, -1 for none, and what it has in memory only.
type handover struct {
	Version    int             `json:"version"`
	From       string          `json:"from"` // the version of the program
	Lock       int             `json:"lock"`
	Listener   int             `json:"listener"`
	Call       int             `json:"call"`   // the connection that waits for the end of it
	Nofile     [2]uint64       `json:"nofile"` // the limits of descriptors, soft and hard
	Exits      uint64          `json:"exits"`
	Containers []heldContainer `json:"containers"`
	Execs      []heldExec      `json:"execs"`
}

// heldContainer is one that runs or has ended.
type heldContainer struct {
	ID          string           `json:"id"`
	PIDFD       int              `json:"pidfd"`
	Log         int              `json:"log"`
	Input       int              `json:"input"`
	Outputs     [2]heldOutput    `json:"outputs"` // stdout, stderr
	Killed      bool             `json:"killed,omitempty"`
	RuntimeGone bool             `json:"runtimeGone,omitempty"`
	Exit        *supervisor.Exit `json:"exit,omitempty"` // nil while it runs
	Number      uint64           `json:"number,omitempty"`
}

// heldOutput is one stream; what was read of it and not written is in its staging slot.
type heldOutput struct {
	FD     int  `json:"fd"`
	Finite bool `json:"finite,omitempty"`
}

// heldExec is an exec'd process and the connection that waits for its end.
type heldExec struct {
	Container string `json:"container"`
	PID       int    `json:"pid"`
	Files     string `json:"files"` // the beginning of their names
	Call      int    `json:"call"`
	ExitCode  *int   `json:"exitCode,omitempty"` // it has ended, and its caller has not been told
}

// descriptors are all that it names.
func (h *handover) descriptors() []int {
	all := []int{h.Lock, h.Listener, h.Call}
	for i := range h.Containers {
		all = append(all, h.Containers[i].descriptors()...)
	}
	for i := range h.Execs {
		all = append(all, h.Execs[i].Call)
	}
	return slices.DeleteFunc(all, func(fd int) bool { return fd < 0 })
}

func (h *heldContainer) descriptors() []int {
	return slices.DeleteFunc([]int{h.PIDFD, h.Log, h.Input, h.Outputs[0].FD, h.Outputs[1].FD}, func(fd int) bool { return fd < 0 })
}

// close closes those that nobody has taken.
func (h *heldContainer) close() {
	for _, fd := range h.descriptors() {
		_ = unix.Close(fd)
	}
}

// container returns what is handed over of one; nil for none, and without a handover.
func (h *handover) container(id string) *heldContainer {
	if h == nil {
		return nil
	}
	for i := range h.Containers {
		if h.Containers[i].ID == id {
			return &h.Containers[i]
		}
	}
	return nil
}

// file is the description in a file in memory.
func (h *handover) file() (*os.File, error) {
	data, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("describing the handover: %w", err)
	}
	fd, err := unix.MemfdCreate("gantry-handover", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("describing the handover: %w", err)
	}
	f := os.NewFile(uintptr(fd), "handover")
	if _, err := f.Write(data); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("describing the handover: %w", err)
	}
	return f, nil
}

// readHandover reads the description that is open under fd, from its beginning.
func readHandover(fd int) (*handover, error) {
	data, err := io.ReadAll(io.NewSectionReader(pread(fd), 0, maxHandover))
	if err != nil {
		return nil, fmt.Errorf("reading the handover: %w", err)
	}
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, fmt.Errorf("reading the handover: %w", err)
	}
	if v.Version != handoverVersion {
		return nil, fmt.Errorf("handover is of version %d, this program knows %d", v.Version, handoverVersion)
	}
	h := &handover{}
	if err := wire.Unmarshal(data, h); err != nil {
		return nil, fmt.Errorf("reading the handover: %w", err)
	}
	return h, nil
}

// pread is a descriptor that is only read from; it stays its owner's.
type pread int

func (fd pread) ReadAt(p []byte, off int64) (int, error) {
	n, err := unix.Pread(int(fd), p, off)
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return max(n, 0), err
}

// Check says whether this program, had it been handed what is described in
// the file open under fd, could go on with it: it changes nothing, and is called
// in a process beside the supervisor.
func Check(dir string, fd int) error {
	h, err := readHandover(fd)
	if err != nil {
		return err
	}
	s := &Server{dir: dir}
	for i := range h.Containers {
		if _, err := s.readRecord(h.Containers[i].ID); err != nil && !errors.Is(err, os.ErrNotExist) { // deleted meanwhile
			return fmt.Errorf("container %s: %w", h.Containers[i].ID, err)
		}
	}
	return nil
}

// takeHandover reads what a predecessor that was this process has left, whose
// descriptors are as private again as all others.
func takeHandover(fd int) (*handover, error) {
	defer unix.Close(fd)
	h, err := readHandover(fd)
	if err != nil {
		return nil, err
	}
	return h, errors.Join(setNofile(h.Nofile), setCloseOnExec(h.descriptors(), true))
}

// setNofile sets this process' limits of descriptors, which syscall.Exec sets
// back to those that it was started with. Not by package syscall, which would
// then give them to children as well, instead of the lower ones it keeps for these.
func setNofile(limits [2]uint64) error {
	if limits == [2]uint64{} { // of one that does not tell them: what it was started with is left
		return nil
	}
	if _, _, errno := unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&limits)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("setting the limit of descriptors to %v: %w", limits, errno)
	}
	return nil
}

func setCloseOnExec(fds []int, on bool) error {
	flags := 0
	if on {
		flags = unix.FD_CLOEXEC
	}
	var errs []error
	for _, fd := range fds {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags); err != nil {
			errs = append(errs, fmt.Errorf("descriptor %d of the handover: %w", fd, err))
		}
	}
	return errors.Join(errs...)
}

// become executes program in place of this one. It returns only with an
// error, and then nothing has changed.
func (h *handover) become(program *os.File, argv []string) error {
	var limits unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limits); err != nil {
		return fmt.Errorf("reading the limit of descriptors: %w", err)
	}
	h.Nofile = [2]uint64{limits.Cur, limits.Max}
	f, err := h.file()
	if err != nil {
		return err
	}
	defer f.Close()
	fd := fileFD(f)
	argv = append(argv, "--handover", fmt.Sprint(fd))
	fds := append(h.descriptors(), fd)
	syscall.ForkLock.Lock() // no child is to have them
	defer syscall.ForkLock.Unlock()
	err = setCloseOnExec(fds, false)
	if err == nil {
		err = syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", fileFD(program)), argv, os.Environ())
	}
	_ = setCloseOnExec(fds, true)
	_ = setNofile(h.Nofile)
	return fmt.Errorf("executing %s: %w", argv[0], err)
}

// rawFD is the number of a descriptor, which stays its owner's, -1 if that has closed it.
func rawFD(f syscall.Conn) int {
	n := -1
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { n = int(fd) }) // not Fd(), which would make it blocking
	}
	return n
}

// fileFD is rawFD of a file that may be nil.
func fileFD(f *os.File) int {
	if f == nil {
		return -1
	}
	return rawFD(f)
}
