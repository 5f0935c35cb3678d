package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// OldestOCIVersion is what every OCI runtime of these years understands; specs
// for a runtime without the "features" command ask for it.
const OldestOCIVersion = "1.0.2"

// Features is what an OCI runtime says that it can do. The zero value but for
// OCIVersion is a runtime that says nothing.
type Features struct {
	OCIVersion        string // newest that it understands
	RecursiveReadOnly bool   // the mount option "rro"
	IDMappedMounts    bool
}

const (
	probeTimeout = 10 * time.Second
	probeOutput  = 1 << 20
)

// ProbeRuntime asks the OCI runtime at path for its features
// (runtime-spec, features.md). A runtime without that command is an old one
// and no error; one that cannot be executed, or does not answer, is.
func ProbeRuntime(ctx context.Context, path string) (Features, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "features")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	var out bytes.Buffer
	cmd.Stdout = limitWriter{&out, probeOutput}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return Features{}, fmt.Errorf("%s features: no answer within %v: %w", path, probeTimeout, ctx.Err())
		}
		if cmd.ProcessState == nil {
			return Features{}, fmt.Errorf("%s features: %w", path, err)
		}
		return Features{OCIVersion: OldestOCIVersion}, nil
	}
	var f features.Features
	if err := json.Unmarshal(out.Bytes(), &f); err != nil {
		return Features{}, fmt.Errorf("%s features: %w", path, err)
	}
	got := Features{OCIVersion: f.OCIVersionMax, RecursiveReadOnly: slices.Contains(f.MountOptions, "rro")}
	if got.OCIVersion == "" {
		got.OCIVersion = OldestOCIVersion
	}
	if l := f.Linux; l != nil && l.MountExtensions != nil && l.MountExtensions.IDMap != nil && l.MountExtensions.IDMap.Enabled != nil {
		got.IDMappedMounts = *l.MountExtensions.IDMap.Enabled
	}
	return got, nil
}

// limitWriter fails when more than n bytes have been written to b.
type limitWriter struct {
	b *bytes.Buffer
	n int
}

func (w limitWriter) Write(p []byte) (int, error) {
	if w.b.Len()+len(p) > w.n {
		return 0, fmt.Errorf("more than %d bytes of output: %w", w.n, io.ErrShortWrite)
	}
	return w.b.Write(p)
}
