package logcopy

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// disk mounts a file system of its own at the rig's logs; the options are a tmpfs', "" is an ext4.
func disk(t *testing.T, options string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting takes root")
	}
	dir := t.TempDir()
	at := filepath.Join(dir, "disk")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if options != "" {
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, options); err != nil {
			t.Skip("mounting a tmpfs:", err)
		}
	} else {
		image := filepath.Join(dir, "image")
		for _, command := range [][]string{
			{"truncate", "-s", "32M", image}, {"mkfs.ext4", "-q", "-O", "^has_journal", image}, {"mount", "-o", "loop", image, at},
		} {
			if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
				t.Skipf("%s: %v: %s", command[0], err, out)
			}
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return at
}

// numbered are n lines of 40 bytes.
func numbered(from, n int) []byte {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "%08d %s\n", from+i, strings.Repeat("y", 30))
	}
	return b.Bytes()
}

const numberedSize = 40

// feed writes what must be taken at once, whatever the log does.
func (r *rig) feed(data []byte) {
	r.Helper()
	_ = r.w.SetWriteDeadline(time.Now().Add(time.Minute))
	if n, err := r.w.Write(data); err != nil {
		r.Fatalf("the container is blocked after %d bytes of %d: %v", n, len(data), err)
	}
}

// numbers checks that the log has whole lines in order, and that what it does
// not have is what was counted of the written ones. It returns the numbers.
func (r *rig) numbers(path string, written int) []int {
	r.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		r.Fatal(err)
	}
	var all []int
	last := -1
	for l := range strings.Lines(string(data)) {
		var n int
		_, text, ok := strings.Cut(l, " stdout F ")
		if _, err := fmt.Sscanf(text, "%d", &n); err != nil || !ok || len(text) != numberedSize || n <= last {
			r.Fatalf("after line %d: %q", last, l)
		}
		last = n
		all = append(all, n)
	}
	if lost := r.file.Lost(); lost != uint64((written-len(all))*numberedSize) {
		r.Errorf("%d lines of %d are in the log, %d bytes are counted as lost", len(all), written, lost)
	}
	return all
}

func rigOn(t *testing.T, dir string, max int64) *rig {
	r := newRig(t)
	r.file.Close()
	var err error
	if r.file, err = OpenFile(dir, "c.log", max, quiet); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.file.Close)
	r.start(nil)
	return r
}

// A disk that is full takes what fits, in whole lines; the container goes on,
// and so does its log when there is space.
func TestDiskWithoutSpace(t *testing.T) {
	dir := disk(t, "size=1m")
	r := rigOn(t, dir, 0)
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 512<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	const n = 100_000
	r.feed(numbered(0, n))
	waitFor(t, func() bool { return r.c.Bytes() == n*numberedSize })
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	written := n
	path := filepath.Join(dir, "c.log")
	full, _ := os.Stat(path)
	waitFor(t, func() bool {
		r.feed(numbered(written, 1))
		written++
		now, err := os.Stat(path)
		return err == nil && now.Size() > full.Size()
	})
	r.end()
	if all := r.numbers(path, written); len(all) < 100 || all[len(all)-1] != written-1 {
		t.Errorf("%d lines of %d, the last is %d", len(all), written, all[len(all)-1])
	}
}

// A file system that has failed gives EIO.
func TestDiskThatFails(t *testing.T) {
	dir := disk(t, "")
	r := rigOn(t, dir, 0)
	r.feed(numbered(0, 1000))
	waitFor(t, func() bool {
		log, err := os.ReadFile(filepath.Join(dir, "c.log"))
		return err == nil && bytes.Count(log, []byte("\n")) == 1000
	})
	const shutdown, noLogFlush = 0x8004587d, 2 // FS_IOC_SHUTDOWN
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	flags := uint32(noLogFlush)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), shutdown, uintptr(unsafe.Pointer(&flags)))
	_ = d.Close()
	if errno != 0 {
		t.Skip("shutting a file system down:", errno)
	}
	r.feed(numbered(1000, 100_000))
	r.end()
	if lost := r.file.Lost(); lost != 100_000*numberedSize {
		t.Errorf("%d bytes are lost", lost)
	}
	if r.file.failing != unix.EIO {
		t.Error(r.file.failing)
	}
}

// While a write hangs the container goes on, and others as if nothing were. Afterwards the log goes on with whole lines.
func TestDiskThatHangs(t *testing.T) {
	defer func(d time.Duration) { hangTime = d }(hangTime)
	hangTime = time.Second // which no write takes that does not hang
	dir := disk(t, "")
	r, other := rigOn(t, dir, 0), newRig(t)
	other.start(nil)
	r.feed(numbered(0, 1000))
	waitFor(t, func() bool {
		log, err := os.ReadFile(filepath.Join(dir, "c.log"))
		return err == nil && bytes.Count(log, []byte("\n")) == 1000
	})

	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const freeze, thaw = 0xc0045877, 0xc0045878 // FIFREEZE, FITHAW
	if err := unix.IoctlSetInt(int(d.Fd()), freeze, 0); err != nil {
		t.Skip("freezing:", err)
	}
	frozen := true
	unfreeze := func() {
		if frozen {
			frozen = false
			if err := unix.IoctlSetInt(int(d.Fd()), thaw, 0); err != nil {
				t.Error(err)
			}
		}
	}
	defer unfreeze()

	const n = 200_000
	data := numbered(1000, n)
	r.feed(append(data, "the beginning of a line"...))
	other.feed(data)
	other.end()
	if got := strings.Count(other.log(), "\n"); got != n {
		t.Errorf("another's log has %d lines of %d", got, n)
	}
	reopened := make(chan error, 2)
	for range 2 { // the one hangs, the other must not
		go func() { reopened <- r.file.Reopen() }()
	}
	select {
	case err := <-reopened:
		if !errors.Is(err, errdefs.ErrUnavailable) {
			t.Error("reopening on a frozen file system:", err)
		}
	case <-time.After(time.Minute):
		t.Error("each reopening hangs")
	}
	waitFor(t, func() bool { return r.file.Lost() > 0 })
	unfreeze()
	if err := <-reopened; err != nil {
		t.Error(err)
	}
	r.feed([]byte(" is dropped with its end\n"))
	rest := uint64(len("the beginning of a line is dropped with its end\n"))
	waitFor(t, func() bool { return r.c.Bytes() == (1000+n)*numberedSize+rest })
	written := 1000 + n
	waitFor(t, func() bool { // the beginning of a line of which the other half came later
		r.feed(numbered(written, 1))
		written++
		data, err := os.ReadFile(filepath.Join(dir, "c.log"))
		return err == nil && bytes.Contains(data, fmt.Appendf(nil, " %08d ", written-1))
	})
	r.end()
	r.file.mu.Lock()
	if r.file.lost < rest {
		t.Error("the line that lost its beginning is not counted")
	}
	r.file.lost -= rest
	r.file.mu.Unlock()
	if all := r.numbers(filepath.Join(dir, "c.log"), written); len(all) == written {
		t.Error("nothing was dropped")
	}
}

// A container with a log that hangs can be stopped; what was in the air ends with the hanging.
func TestStopWhileItHangs(t *testing.T) {
	defer func(d time.Duration) { hangTime = d }(hangTime)
	hangTime = 20 * time.Millisecond
	r := newRig(t)
	r.start(nil)
	r.file.lock() // as who writes and does not come back
	r.feed(numbered(0, 100_000))
	r.c.Stop()
	r.file.Close()
	r.file.unlock()
	<-r.c.Done()
	if r.file.out.fd != -1 || r.file.busy != -1 {
		t.Error("a descriptor is left")
	}
}

// A log of limited size ends with a whole line, and goes on when it is rotated.
func TestLargestSize(t *testing.T) {
	dir := t.TempDir()
	const most = 100_000
	r := rigOn(t, dir, most)
	path := filepath.Join(dir, "c.log")
	const n = 50_000
	r.feed(numbered(0, n))
	waitFor(t, func() bool { return r.c.Bytes() == n*numberedSize && r.file.Lost() > 0 })
	info, err := os.Stat(path)
	if line := int64(len(stamp) + len(" stdout F ") + numberedSize); err != nil || info.Size() > most || info.Size() <= most-line {
		t.Errorf("the log has %d bytes, the most are %d", info.Size(), most)
	}
	r.feed([]byte("short\n")) // would fit
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return r.c.Bytes() == n*numberedSize+6 })
	if err := r.file.Reopen(); err != nil {
		t.Fatal(err)
	}
	r.feed(numbered(n, 10))
	r.end()
	r.file.mu.Lock()
	r.file.lost -= 6
	first, _ := os.ReadFile(path + ".1")
	r.file.lost += uint64(bytes.Count(first, []byte("\n"))) * numberedSize // those are not in the second
	r.file.mu.Unlock()
	if all := r.numbers(path, n+10); len(all) != 10 || all[0] != n {
		t.Errorf("after the rotation: %v", all)
	}
}
