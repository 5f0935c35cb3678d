package sandbox

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestCheckSystemd(t *testing.T) {
	root := t.TempDir() + "/"
	for _, dir := range []string{"proc/1", "run/systemd"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	check := func(comm, want string) {
		t.Helper()
		if err := os.WriteFile(root+"proc/1/comm", []byte(comm+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := checkSystemd(t.Context(), root)
		if want == "" && err != nil || want != "" && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want)) {
			t.Errorf("process 1 is %s: %v, want %q", comm, err, want)
		}
	}
	check("init", `process 1 is "init"`)
	check("systemd", "cannot be reached")
	l, err := net.Listen("unix", root+"run/systemd/private")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	check("systemd", "")
}
