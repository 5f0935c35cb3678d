package hostwork

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/hostpath"
	"github.com/gantry-cri/gantry/test/disk"
)

// The test's program is that of its processes too.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "-do" {
		if err := hostpath.ServeWork(os.Args[2], Works); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0) // as package hostpath's
	}
	os.Exit(m.Run())
}

func newPaths() Paths { return Paths{hostpath.NewOpener("/proc/self/exe")} }

func TestWorks(t *testing.T) {
	p, dir := newPaths(), t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("data"), 0o640); err != nil {
		t.Fatal(err)
	}
	found, err := p.Devices(t.Context(), true, []Device{{"/dev/null", "/dev/x", "rw"}, {"/dev/zero", "", "r"}})
	if err != nil || len(found.All) == 0 || len(found.Nodes) != 2 || len(found.Rules) != 2 {
		t.Fatalf("devices %+v, %v", found, err)
	}
	if d, r := found.Nodes[0][0], found.Rules[0]; d.Path != "/dev/x" || d.Minor != 3 || *d.FileMode != 0o666 || *d.UID != 0 || !r.Allow || *r.Minor != 3 || r.Access != "rw" {
		t.Errorf("device %+v, %+v", d, r)
	}
	if _, err := p.Devices(t.Context(), false, []Device{{"/dev/null", "", "r"}, {file, "", "r"}}); !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), "devices[1]: ") {
		t.Errorf("a file as a device: %v", err)
	}
	if data, err := p.ReadFile(t.Context(), file, 4); err != nil || string(data) != "data" {
		t.Errorf("read %q, %v", data, err)
	}
	modes, err := p.Modes(t.Context(), []string{file, dir + "/none"})
	if err != nil || len(modes) != 2 || modes[0] != unix.S_IFREG|0o640 || modes[1] != 0 {
		t.Errorf("modes %o, %v", modes, err)
	}
	if err := p.Relabel(t.Context(), "/etc", "u:object_r:f:s0"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("relabelling the host's /etc: %v", err)
	}
	spec := `{"cdiVersion": "0.7.0", "kind": "v.x/c", "devices": [{"name": "d", "containerEdits": {"env": ["A=b"], ` +
		`"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null"}], "mounts": [{"hostPath": "/dev", "containerPath": "/m"}], ` +
		`"hooks": [{"hookName": "poststop", "path": "/bin/true"}], "additionalGids": [7]}}]}`
	if err := os.WriteFile(dir+"/spec.json", []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := p.CDIEdits(t.Context(), []string{dir}, []string{"v.x/c=d"})
	if err != nil || len(e.Env) != 1 || len(e.Devices) != 1 || e.Devices[0].Minor != 3 || e.Sources["/dev/x"] != "/dev/null" ||
		len(e.Rules) != 1 || len(e.Mounts) != 1 || e.Mounts[0].Source != "/dev" || len(e.Hooks.Poststop) != 1 || len(e.GIDs) != 1 {
		t.Errorf("edits %+v, %v", e, err)
	}
	if _, err := p.CDIEdits(t.Context(), []string{dir}, []string{"v.x/c=none"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a device that is not there: %v", err)
	}
}

// Nobody waits longer than he wants to, whatever is done with a path that hangs.
func TestHangs(t *testing.T) {
	p, d := newPaths(), disk.NewHanging(t)
	dir := filepath.Join(d.Dir, "sub")
	works := []func(context.Context) error{
		func(ctx context.Context) error { _, err := p.Devices(ctx, false, []Device{{dir, "", "r"}}); return err },
		func(ctx context.Context) error {
			_, err := p.CDIEdits(ctx, []string{dir}, []string{"v.x/c=d"})
			return err
		},
		func(ctx context.Context) error { _, err := p.ReadFile(ctx, dir+"/file", 10); return err },
		func(ctx context.Context) error { return p.Relabel(ctx, dir, "u:object_r:f:s0") },
		func(ctx context.Context) error { _, err := p.Modes(ctx, []string{dir}); return err },
	}
	answered := func() {
		for i, work := range works {
			if err := work(t.Context()); errdefs.IsUnavailable(err) {
				t.Errorf("work %d: %v", i, err)
			}
		}
	}
	answered() // or one lookup would wait for another
	d.Hang()
	for i, work := range works {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- work(ctx) }()
		d.AwaitHung(i + 1)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("work %d ended with %v", i, err)
		}
	}
	d.Resume()
	answered()
}

// TestSecurity: what a request may name is read no further than it is of use.
func TestSecurity(t *testing.T) {
	t.Run("2.6-seccomp-file", func(t *testing.T) {
		const most = 1 << 10
		dir := t.TempDir()
		large, fifo := filepath.Join(dir, "large"), filepath.Join(dir, "fifo")
		if err := os.WriteFile(large, make([]byte, most+1), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{large, fifo, dir, "/dev/zero", filepath.Join(dir, "missing")} {
			if _, err := newPaths().ReadFile(t.Context(), path, most); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s: %v", path, err)
			}
		}
	})
}
