package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/gantry-cri/gantry/sandbox/podinit"
)

// HasX32 reports whether the kernel runs system calls of the x32 ABI. A child
// process tries one, for a filter that the daemon may run under could kill
// whoever does. Whatever else happens than a plain "no" counts as yes.
func (h *Host) HasX32(ctx context.Context) (bool, error) {
	if runtime.GOARCH != "amd64" {
		return false, nil
	}
	path := filepath.Join(h.runDir, "x32probe")
	if err := podinit.InstallX32Probe(path); err != nil {
		return true, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := exec.CommandContext(ctx, path).Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode() != 1, nil
	}
	if err != nil {
		return true, fmt.Errorf("trying the x32 ABI: %w", err)
	}
	return true, nil
}
