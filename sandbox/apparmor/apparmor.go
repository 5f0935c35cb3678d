package apparmor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

const (
	enabledFile  = "/sys/module/apparmor/parameters/enabled"
	securityDir  = "/sys/kernel/security/apparmor"
	profilesFile = securityDir + "/profiles"

	parserTimeout = 30 * time.Second
	maxMessage    = 2048    // bytes of what the parser says, in an error
	maxProfiles   = 8 << 20 // bytes of profilesFile; a desktop has 10 KiB
)

// parserDirs are where distributions install apparmor_parser. The daemon's own
// PATH has no say in which program loads policy.
var parserDirs = []string{"/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"}

// Enabled reports whether processes can be put under AppArmor profiles. Where
// the kernel could, but its files are not there, it is false with an error
// that says what to do.
func Enabled() (bool, error) {
	b, err := os.ReadFile(enabledFile)
	if err != nil || !strings.HasPrefix(string(b), "Y") {
		return false, nil
	}
	if _, err := os.Stat(profilesFile); err != nil {
		return false, fmt.Errorf("the kernel has AppArmor, but not its files (%w): mount -t securityfs securityfs /sys/kernel/security", err)
	}
	return true, nil
}

// Load compiles the default profile and puts it into the kernel, taking the
// place of one that is there. It is errdefs.ErrNotFound without apparmor_parser.
func Load(ctx context.Context) error { return parse(ctx, text(ownLabel()), "--replace") }

// Check compiles the default profile and leaves the kernel as it is.
func Check(ctx context.Context) error { return parse(ctx, text(ownLabel()), "--skip-kernel-load") }

// ownLabel is the label that the daemon runs under, "" where there is none.
func ownLabel() string {
	b, err := os.ReadFile("/proc/self/attr/current")
	if err != nil { // EINVAL without a security module that owns the file
		return ""
	}
	label, _, _ := strings.Cut(strings.TrimRight(string(b), "\n\x00"), " (") // "NAME (enforce)", or "unconfined"
	return label
}

func parse(ctx context.Context, policy, what string) error {
	path, err := parser()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, parserTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, what, "--skip-cache", "--jobs=0") // in one process
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdin = strings.NewReader(policy)
	var out message
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("loading the AppArmor profile %s: %s: %w: %s", DefaultProfile, cmd, err, bytes.TrimSpace(out.b.Bytes()))
	}
	return nil
}

func parser() (string, error) {
	for _, dir := range parserDirs {
		path := filepath.Join(dir, "apparmor_parser")
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("apparmor_parser is not installed, install the package apparmor: %w", errdefs.ErrNotFound)
}

// message keeps the beginning of what is written to it.
type message struct {
	b bytes.Buffer // not embedded: io.Copy would find its ReadFrom, which has no limit
}

func (m *message) Write(p []byte) (int, error) {
	m.b.Write(p[:min(len(p), maxMessage-m.b.Len())])
	return len(p), nil
}

// Loaded reports whether the kernel has a profile of this name.
func Loaded(name string) (bool, error) {
	f, err := os.Open(profilesFile)
	if err != nil {
		return false, fmt.Errorf("looking for AppArmor profile %q: %w", name, err)
	}
	defer f.Close()
	list, err := io.ReadAll(io.LimitReader(f, maxProfiles+1))
	if err == nil && len(list) > maxProfiles {
		err = errors.New("the list is too long")
	}
	if err != nil {
		return false, fmt.Errorf("looking for AppArmor profile %q: %w", name, err)
	}
	return listed(list, name), nil
}

// listed looks for a name among lines of the form "NAME (MODE)". Names may
// hold blanks and brackets.
func listed(list []byte, name string) bool {
	for line := range bytes.Lines(list) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		if i := bytes.LastIndex(line, []byte(" (")); i > 0 && string(line[:i]) == name {
			return true
		}
	}
	return false
}
