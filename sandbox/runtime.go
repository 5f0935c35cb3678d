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

// Features is what an OCI runtime says that it can do (runtime-spec,
// features.md). Of a runtime that is not Known only OCIVersion is set, to the
// oldest: what else it can do is not known.
type Features struct {
	Known      bool   // it has the command "features"
	OCIVersion string // newest that it understands

	Namespaces        []string // as in the spec: "user", "cgroup", "time", ...
	RecursiveReadOnly bool     // the mount option "rro"
	IDMappedMounts    bool

	CgroupV1, CgroupV2, CgroupSystemd bool
	Seccomp, AppArmor, SELinux        bool

	UnsafeAnnotations []string // that change what it does on the node; one that ends in "." is a prefix
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
	return parseFeatures(f), nil
}

func parseFeatures(f features.Features) Features {
	got := Features{
		Known: true, OCIVersion: f.OCIVersionMax, RecursiveReadOnly: slices.Contains(f.MountOptions, "rro"),
		UnsafeAnnotations: f.PotentiallyUnsafeConfigAnnotations,
	}
	if got.OCIVersion == "" {
		got.OCIVersion = OldestOCIVersion
	}
	l := f.Linux
	if l == nil {
		return got
	}
	is := func(b *bool) bool { return b != nil && *b }
	got.Namespaces = l.Namespaces
	got.IDMappedMounts = l.MountExtensions != nil && l.MountExtensions.IDMap != nil && is(l.MountExtensions.IDMap.Enabled)
	if c := l.Cgroup; c != nil {
		got.CgroupV1, got.CgroupV2, got.CgroupSystemd = is(c.V1), is(c.V2), is(c.Systemd)
	}
	got.Seccomp = l.Seccomp != nil && is(l.Seccomp.Enabled)
	got.AppArmor = l.Apparmor != nil && is(l.Apparmor.Enabled)
	got.SELinux = l.Selinux != nil && is(l.Selinux.Enabled)
	return got
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
