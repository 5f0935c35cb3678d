package cni

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// versionTimeout is for a plugin to answer VERSION.
const versionTimeout = 5 * time.Second

// versions remembers, for each program, which versions of the specification it says it knows; nil = it did not say.
type versions struct {
	mu    sync.Mutex
	known map[program][]string
}

// program is a file as it was when it was asked.
type program struct {
	dev, ino uint64
	changed  unix.Timespec
}

// understands refuses a program that says that it does not know a version of the specification, and one that the kernel
// does not execute: neither could undo with DEL what the plugins before it have made. One that answers anything else to
// VERSION is tried. A program is asked once.
func (p *plugins) understands(ctx context.Context, path, version string) error {
	if strings.HasPrefix(path, builtInPrefix) {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("CNI plugin %s: %w", path, err)
	}
	key := program{st.Dev, st.Ino, st.Ctim}
	p.versions.mu.Lock()
	said, asked := p.versions.known[key]
	p.versions.mu.Unlock()
	if !asked {
		asking, cancel := context.WithTimeout(ctx, versionTimeout)
		defer cancel()
		out, err := p.ExecPlugin(asking, path, []byte(`{"cniVersion":"1.0.0"}`), // plugins of old want more than the command
			[]string{"CNI_COMMAND=VERSION", "CNI_NETNS=none", "CNI_IFNAME=none", "CNI_PATH=none"})
		var errno syscall.Errno
		if errors.As(err, &errno) || ctx.Err() != nil {
			return err
		}
		if err == nil {
			if info, err := p.Decode(out); err == nil {
				said = info.SupportedVersions()
			}
		}
		p.versions.mu.Lock()
		if p.versions.known == nil || len(p.versions.known) > 100 { // programs that are replaced again and again
			p.versions.known = map[program][]string{}
		}
		p.versions.known[key] = said
		p.versions.mu.Unlock()
	}
	if said != nil && !slices.Contains(said, version) {
		return fmt.Errorf("CNI plugin %s knows the versions %s of CNI, not %s: set another cniVersion in the network's configuration, or install another plugin: %w",
			path, strings.Join(said, ", "), version, errdefs.ErrFailedPrecondition)
	}
	return nil
}
