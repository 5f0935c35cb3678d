package harness

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gantry-cri/gantry/test/images"
)

// Require skips a test without root, saying why; in CI (CI=true) it fails instead.
func Require(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root: containers are made of mounts, namespaces and cgroups")
	}
	t.Skip("needs root: containers are made of mounts, namespaces and cgroups")
}

// New starts an instance for one test. When the test ends it is audited and closed; if the test has failed, the
// end of the daemon's log is shown, and its logs are kept in the folder GANTRY_TEST_LOGS, if there is one.
func New(t testing.TB, cfg Config) *Instance {
	t.Helper()
	Require(t)
	i, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Audit(); err != nil {
			t.Error(err)
		}
		tail := i.LogTail(80)
		if t.Failed() {
			if err := i.keepLogs(t.Name()); err != nil {
				t.Logf("keeping the logs: %v", err)
			}
		}
		if err := i.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the daemon's log ends:\n%s", tail)
		}
	})
	return i
}

// keepLogs copies the logs of the daemon and of the supervisor.
func (i *Instance) keepLogs(test string) error {
	home := os.Getenv("GANTRY_TEST_LOGS")
	if home == "" {
		return nil
	}
	to := filepath.Join(home, strings.ReplaceAll(test, "/", "-"), filepath.Base(i.Dir))
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, from := range []string{i.logFile(), filepath.Join(i.Dir, "run/supervisor.log")} {
		body, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(to, filepath.Base(from)), body, 0o644)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// shared is the registry of a test process: making the images takes seconds, and no test changes them.
var shared struct {
	once     sync.Once
	registry *images.Registry
	err      error
}

// Registry is the registry with the test images. Main ends it.
func Registry(t testing.TB) *images.Registry {
	t.Helper()
	Require(t)
	shared.once.Do(func() { shared.registry, shared.err = images.Serve(context.Background(), "127.0.0.1:0", false) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.registry
}

func closeRegistry() error {
	if shared.registry == nil {
		return nil
	}
	return shared.registry.Close()
}
