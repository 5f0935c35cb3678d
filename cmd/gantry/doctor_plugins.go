package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pluginTimeout is for a CNI plugin to say its version.
const pluginTimeout = 5 * time.Second

func inDirs(program string, dirs []string) bool { return findIn(program, dirs) != "" }

func findIn(program string, dirs []string) (path string) {
	for _, dir := range dirs {
		path := filepath.Join(dir, program)
		if filepath.Base(path) == program && unix.Access(path, unix.X_OK) == nil {
			return path
		}
	}
	return ""
}

// pluginVersion is that of a plugin whose holes are known, "" if it does not say. The CNI project's plugins introduce
// themselves when they are called without a command: "CNI portmap plugin v1.5.1". Debian's have no version.
func pluginVersion(ctx context.Context, plugin string, dirs []string) string {
	if !slices.ContainsFunc(holes, func(h hole) bool { return h.program == plugin }) {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, findIn(plugin, dirs), "--version")
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	out := &firstBytes{}
	cmd.Stdout, cmd.Stderr = out, out
	_ = cmd.Run() // what it says counts, not how it ends
	_, version, _ := strings.Cut(string(out.kept), "CNI "+plugin+" plugin v")
	version, _, _ = strings.Cut(version, "\n")
	return version
}

// firstBytes keeps the beginning of an output.
type firstBytes struct{ kept []byte }

func (f *firstBytes) Write(b []byte) (int, error) {
	f.kept = append(f.kept, b[:min(len(b), 1024-len(f.kept))]...)
	return len(b), nil
}
