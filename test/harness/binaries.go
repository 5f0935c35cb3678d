package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// Repository is the absolute path of the project's root folder.
func Repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "hack/build.sh")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not inside the repository: run the tests from one of its folders")
		}
		dir = parent
	}
}

var build struct {
	once sync.Once
	bin  string
	err  error
}

// binaries builds the product once per test process, so that no test runs against an old one, and returns bin/.
func binaries(ctx context.Context) (string, error) {
	build.once.Do(func() {
		repo, err := Repository()
		if err != nil {
			build.err = err
			return
		}
		build.bin = filepath.Join(repo, "bin")
		if dir := os.Getenv("GANTRY_TEST_BIN"); dir != "" { // build.sh builds into it: test/guards keeps spoilt ones apart
			build.bin = dir
		}
		if out, err := exec.CommandContext(ctx, filepath.Join(repo, "hack/build.sh")).CombinedOutput(); err != nil {
			build.err = fmt.Errorf("building gantry: %w\n%s", err, out)
		}
	})
	return build.bin, build.err
}

// Tool builds the pinned tool (crictl, critest) if it is not there, and returns its path.
func Tool(ctx context.Context, name string) (string, error) {
	repo, err := Repository()
	if err != nil {
		return "", err
	}
	if out, err := exec.CommandContext(ctx, filepath.Join(repo, "hack/build.sh"), name).CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", name, err, out)
	}
	return filepath.Join(repo, "bin", name), nil
}

// FindRunc asks the scripts, so that tests use the same runc as the demo.
func FindRunc() (string, error) {
	repo, err := Repository()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("bash", "-c", "source hack/lib.sh && find_runc")
	cmd.Dir = repo
	out, err := cmd.Output()
	if path := strings.TrimSpace(string(out)); err == nil && path != "" {
		return path, nil
	}
	return "", errors.New("no sound runc in bin/ or PATH: run hack/install-deps.sh")
}
