package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
)

// OldestOCIVersion is what every OCI runtime of these years understands; specs
// for a runtime without the "features" command ask for it.
const OldestOCIVersion = "1.0.2"

// Features is what an OCI runtime says that it can do (runtime-spec,
// features.md). Of a runtime that is not Known only its version and OCIVersion
// are set, the latter to the oldest, and what its version is known to do.
type Features struct {
	Known      bool   // it has the command "features"
	OCIVersion string // newest that it understands

	Program, Version string // as it calls itself, "runc" and "1.5.2"; both "" where it does not tell

	Namespaces        []string // as in the spec: "user", "cgroup", "time", ...
	RecursiveReadOnly bool     // the mount option "rro", and the kernel can
	IDMappedMounts    bool     // the same of "idmap"

	CgroupV1, CgroupV2, CgroupSystemd bool
	Seccomp, AppArmor, SELinux        bool

	UnsafeAnnotations []string // that change what it does on the node; one that ends in "." is a prefix
}

const (
	probeTimeout = 10 * time.Second
	probeOutput  = 1 << 20 // bytes of its answer
	probeText    = 4 << 10 // bytes of its complaint
)

// ProbeRuntime asks the OCI runtime at path, with the options that its handler
// has, for its version and its features (runtime-spec, features.md). A runtime
// without the command "features" is an old one and no error; one that cannot be
// executed, does not answer, or does not take the options, is.
func ProbeRuntime(ctx context.Context, path string, options []string) (Features, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	version, err := ask(ctx, path, options, "--version")
	if err != nil {
		return Features{}, err
	}
	got := Features{OCIVersion: OldestOCIVersion}
	out, err := ask(ctx, path, options, "features")
	var refused *refusedError
	switch {
	case errors.As(err, &refused): // the version was told, so it runs: the command is one that it does not know
	case err != nil:
		return Features{}, err
	default:
		var f features.Features
		if err := json.Unmarshal(out, &f); err != nil {
			return Features{}, fmt.Errorf("%s features: %w", path, err)
		}
		got = parseFeatures(f)
	}
	if m := versionLine.FindSubmatch(version); m != nil {
		got.Program, got.Version = string(m[1]), string(m[2])
	}
	if !got.Known && got.Program == "crun" && !crunBefore181(got.Version) {
		got.RecursiveReadOnly, got.IDMappedMounts = true, true
	}
	if !hasMountSetattr() {
		got.RecursiveReadOnly, got.IDMappedMounts = false, false
	}
	return got, nil
}

// versionLine is the first line of what runc, crun, youki and runsc say to --version.
var versionLine = regexp.MustCompile(`^([A-Za-z][\w.-]{0,31}) version:? (?:release-)?v?(\d[\w.+~-]{0,63})`)

// refusedError is a command that ended with an exit status that is not 0.
type refusedError struct {
	command, output string
	err             error
}

func (e *refusedError) Error() string { return fmt.Sprintf("%s: %s (%v)", e.command, e.output, e.err) }

// ask runs one command of an OCI runtime that makes nothing, without the supervisor, and kills one that has no answer within ctx.
func ask(ctx context.Context, path string, options []string, command ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path, append(slices.Clone(options), command...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	out, text := limited{n: probeOutput, strict: true}, limited{n: probeText}
	cmd.Stdout, cmd.Stderr = &out, &text
	err := cmd.Run()
	var status *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s %s: no answer within %v: %w", path, command[0], probeTimeout, ctx.Err())
	case out.over:
		return nil, fmt.Errorf("%s %s: more than %d bytes of output", path, command[0], probeOutput)
	case errors.As(err, &status):
		return nil, &refusedError{path + " " + command[0], strings.Join(strings.Fields(text.b.String()), " "), err}
	case err != nil:
		return nil, fmt.Errorf("%s %s: %w", path, command[0], err)
	}
	return out.b.Bytes(), nil
}

// crunBefore181 tells versions of crun that may not map owners and make mounts
// below a mount read-only from those that do, by test, and still have no
// command to say so.
func crunBefore181(version string) bool {
	var v [3]int
	n, _ := fmt.Sscanf(version, "%d.%d.%d", &v[0], &v[1], &v[2])
	return n < 2 || slices.Compare(v[:], []int{1, 8, 1}) < 0
}

// HasUserNamespaces is whether it makes containers in user namespaces, which
// are in OCI 1.0 already.
func (f Features) HasUserNamespaces() bool {
	return !f.Known || slices.Contains(f.Namespaces, string(specs.UserNamespace))
}

// hasMountSetattr is whether the kernel (5.12) can make a mount and those below
// it read-only, or map its owners, as a runtime with "rro" or "idmap" needs.
func hasMountSetattr() bool {
	return unix.MountSetattr(-1, "", 0, &unix.MountAttr{}) != unix.ENOSYS
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

// limited keeps the first n bytes that are written to it. Those that follow
// are an error for the writer of a strict one, who is stopped by it.
type limited struct {
	b            bytes.Buffer // not embedded: io.Copy would find its ReadFrom, which has no limit
	n            int
	strict, over bool
}

func (l *limited) Write(p []byte) (int, error) {
	fits := min(len(p), l.n-l.b.Len())
	l.over = l.over || fits < len(p)
	if l.over && l.strict {
		return 0, io.ErrShortWrite
	}
	_, _ = l.b.Write(p[:fits]) // never fails
	return len(p), nil
}
