package sandbox

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestInCgroup(t *testing.T) {
	for _, tc := range []struct {
		groups, cgroup string
		want           bool
	}{
		{"0::/pod/c\n", "/pod/c", true},
		{"0::/pod/c/below\n", "/pod/c", true},
		{"12:memory:/pod/c\n0::/\n", "/pod/c", true},
		{"0::/pod/cc\n", "/pod/c", false},
		{"0::/pod\n", "/pod/c", false},
		{"0::/other/pod/c\n", "/pod/c", false},
		{"0::/a:/pod/c\n", "/pod/c", false},
		{"", "/pod/c", false},
	} {
		if got := inCgroup([]byte(tc.groups), tc.cgroup); got != tc.want {
			t.Errorf("%q in %q: %v", tc.cgroup, tc.groups, got)
		}
	}
}

// TestSecurity: a process number that has become another's leads to no namespace (2.6).
func TestSecurity(t *testing.T) {
	t.Run("2.6-target-reused", func(t *testing.T) {
		h := testHost(t)
		groups, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		own := strings.SplitN(strings.TrimSpace(strings.SplitN(string(groups), "\n", 2)[0]), ":", 3)[2]
		other := exec.Command("sleep", "100")
		if err := other.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = other.Process.Kill(); _ = other.Wait() }()

		// As though the number had been that of a container's process.
		if path, err := h.PinTarget("c1", other.Process.Pid, "/gantry-no-such-cgroup/c"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("a process of another cgroup: %q, %v", path, err)
		}
		if _, err := h.PinTarget("c1", 1<<22+1, own); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("no process: %v", err)
		}
		path, err := h.PinTarget("c2", other.Process.Pid, own)
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil || st.Type != unix.NSFS_MAGIC || filepath.Base(path) != targetPin {
			t.Errorf("%s: %+v, %v", path, st, err)
		}
		for range 2 { // removing is idempotent
			if err := h.removeBundle("c2"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("the pin stays: %v", err)
		}
	})
}
