package hostpath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/test/disk"
)

// The test's program is that of its Opener's processes too.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && (os.Args[1] == "-open" || os.Args[1] == "-do") {
		var err error
		if os.Args[1] == "-open" {
			err = Serve(os.Args[2])
		} else {
			err = ServeWork(os.Args[2], works)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		// Not os.Exit, where the race detector's own end has hung once in a thousand times.
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	os.Exit(m.Run())
}

func newOpener(t *testing.T) *Opener {
	o := NewOpener("/proc/self/exe")
	t.Cleanup(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if len(o.under) > 0 {
			t.Errorf("processes are left: %v", o.under)
		}
	})
	return o
}

func TestOpen(t *testing.T) {
	o, dir := newOpener(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"link": "file", "loop": "loop", "up": "../" + filepath.Base(dir) + "/new/dir"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		name, want string
		err        error
	}{
		{name: "file", want: "file"},
		{name: "link", want: "file"},
		{name: ".", want: "."},
		{name: "up/", err: fs.ErrExist}, // leads to what is not there
		{name: "new/dir", want: "new/dir"},
		{name: "new/./a/b", want: "new/a/b"},
		{name: "up/", want: "new/dir"},
		{name: "loop", err: syscall.ELOOP},
		{name: "file/", err: syscall.ENOTDIR},
		{name: "file/x", err: syscall.ENOTDIR},
	} {
		name := row.name
		for _, again := range []bool{false, true} { // from the kernel's cache
			p, err := o.Open(t.Context(), dir+"/"+name)
			if row.err != nil {
				if !errors.Is(err, row.err) {
					t.Errorf("%s: %v, want %v", name, err, row.err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if want := filepath.Join(dir, row.want); p.Name != want {
				t.Errorf("%s is %s, want %s", name, p.Name, want)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			if p, err := cached(dir + "/" + name); again && err != nil && !errors.Is(err, unix.EINVAL) {
				t.Errorf("%s is not found in the cache: %v", name, err)
			} else if err == nil {
				_ = p.Close()
			}
		}
	}
	if _, err := NewOpener("/no/such/program").Open(t.Context(), dir+"/other"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a program: %v", err)
	}
	if _, err := NewOpener("/bin/true").Open(t.Context(), dir+"/other"); err == nil {
		t.Error("with a program that opens nothing there is no error")
	}
}

func TestPropagation(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	o, dir := newOpener(t), t.TempDir()
	if err := unix.Mount("t", dir, "tmpfs", 0, "size=4096"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil { // not MNT_DETACH: nothing must be held any more
			t.Error(err)
		}
	}()
	for flag, want := range map[uintptr]bool{unix.MS_PRIVATE: false, unix.MS_SHARED: true} {
		if err := unix.Mount("", dir, "", flag, ""); err != nil {
			t.Fatal(err)
		}
		p, err := o.Open(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		if shared, slave, err := p.Propagation(); err != nil || shared != want || slave {
			t.Errorf("flag %x: shared %v, slave %v, %v", flag, shared, slave, err)
		}
		_ = p.Close()
	}
}

// Nobody waits for a file system that hangs longer than he wants to, and not more than one process for a path.
func TestHangs(t *testing.T) {
	o := newOpener(t)
	d := disk.NewHanging(t)
	d.Hang()
	sub, other := filepath.Join(d.Dir, "sub"), filepath.Join(d.Dir, "file")
	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	for i := range 20 {
		path := sub
		if i%2 == 0 {
			path = other
		}
		callers.Go(func() {
			if _, err := o.Open(ctx, path); !errors.Is(err, context.Canceled) {
				t.Errorf("opened with %v", err)
			}
		})
	}
	d.AwaitHung(2)
	cancel()
	callers.Wait()
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	for range 20 { // retries wait for the first's process, which does not heed SIGKILL
		if _, err := o.Open(ctx, sub); !errors.Is(err, context.Canceled) {
			t.Errorf("opened again with %v", err)
		}
	}
	o.mu.Lock()
	if len(o.under) != 2 {
		t.Errorf("%d processes for two paths", len(o.under))
	}
	for i := len(o.under); i < maxHung; i++ {
		o.under[job{of: fmt.Sprint(i)}] = nil
	}
	o.mu.Unlock()
	if _, err := o.Open(t.Context(), filepath.Join(t.TempDir(), "x")); !errdefs.IsUnavailable(err) {
		t.Errorf("with %d processes: %v", maxHung, err)
	}
	o.mu.Lock()
	for j, op := range o.under {
		if op == nil {
			delete(o.under, j)
		}
	}
	o.mu.Unlock()
	d.Resume()
	p, err := o.Open(t.Context(), sub)
	if err != nil || p.Name != sub {
		t.Fatalf("when it answers again: %v, %v", p, err)
	}
	_ = p.Close()
	if p, err = o.Open(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	_ = p.Close()
}

var works = map[string]Work{
	"read":    NewWork(func(path string) (string, error) { data, err := os.ReadFile(path); return string(data), err }),
	"refuse":  NewWork(func(text string) (int, error) { return 0, fmt.Errorf("%s: %w", text, errdefs.ErrInvalidArgument) }),
	"unusual": NewWork(func(n int) (string, error) { return strings.Repeat("x", n), nil }),
}

func TestDo(t *testing.T) {
	o := newOpener(t)
	var got string
	if err := o.Do(t.Context(), "unusual", 1<<20, &got); err != nil || len(got) != 1<<20 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := o.Do(t.Context(), "refuse", "no", nil); !errdefs.IsInvalidArgument(err) || err.Error() != "no: invalid argument" {
		t.Errorf("refused with %v", err)
	}
	if err := o.Do(t.Context(), "read", "/no/such/file", &got); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if err := o.Do(t.Context(), "unknown", "", &got); err == nil {
		t.Error("unknown work is done")
	}
	d := disk.NewHanging(t)
	d.Hang()
	file := filepath.Join(d.Dir, "sub/file")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		d.AwaitHung(1)
		cancel()
	}()
	if err := o.Do(ctx, "read", file, &got); !errors.Is(err, context.Canceled) {
		t.Errorf("read with %v", err)
	}
	for range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if err := o.Do(ctx, "read", file, &got); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read with %v", err)
		}
		cancel()
	}
	o.mu.Lock()
	if len(o.under) != 1 {
		t.Errorf("processes %v, want one", o.under)
	}
	o.mu.Unlock()
	d.Resume()
	if err := o.Do(t.Context(), "read", file, &got); err != nil || got != "content\n" {
		t.Errorf("%q, %v", got, err)
	}
}
