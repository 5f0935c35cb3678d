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

// versions remembers, for each program, which versions of the specification it says it knows.
type versions struct {
	mu    sync.Mutex
	known map[program]*answer
}

// answer is what a program says to VERSION, once given is closed.
type answer struct {
	given chan struct{}
	said  []string // nil = it did not say
	err   error    // it cannot be asked; the next caller tries again
}

// program is a file as it was when it was asked.
type program struct {
	dev, ino uint64
	changed  unix.Timespec
}

// understands refuses a program that says that it does not know a version of the specification, and one that the kernel
// does not execute: neither could undo with DEL what the plugins before it have made. One that answers anything else to
// VERSION is tried.
func (p *plugins) understands(ctx context.Context, path, version string) error {
	if strings.HasPrefix(path, builtInPrefix) {
		return nil
	}
	said, err := p.supported(ctx, path)
	if err != nil {
		return err
	}
	if said != nil && !slices.Contains(said, version) {
		return fmt.Errorf("CNI plugin %s knows the versions %s of CNI, not %s: set another cniVersion in the network's configuration, or install another plugin: %w",
			path, strings.Join(said, ", "), version, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// supported are the versions that a program says it knows. It is asked once, whoever comes meanwhile waits for that.
func (p *plugins) supported(ctx context.Context, path string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("CNI plugin %s: %w", path, err)
	}
	key := program{st.Dev, st.Ino, st.Ctim}
	v := &p.versions
	for {
		v.mu.Lock()
		a := v.known[key]
		if a == nil {
			if v.known == nil || len(v.known) > 100 { // programs that are replaced again and again
				v.known = map[program]*answer{}
			}
			a = &answer{given: make(chan struct{})}
			v.known[key] = a
			v.mu.Unlock()
			if a.said, a.err = p.askVersion(ctx, path); a.err != nil {
				v.mu.Lock()
				delete(v.known, key)
				v.mu.Unlock()
			}
			close(a.given)
			return a.said, a.err
		}
		v.mu.Unlock()
		select {
		case <-a.given:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for CNI plugin %s to tell its versions: %w", path, ctx.Err())
		}
		if a.err == nil {
			return a.said, nil
		}
	}
}

func (p *plugins) askVersion(ctx context.Context, path string) ([]string, error) {
	asking, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := p.ExecPlugin(asking, path, []byte(`{"cniVersion":"1.0.0"}`), // plugins of old want more than the command
		[]string{"CNI_COMMAND=VERSION", "CNI_NETNS=none", "CNI_IFNAME=none", "CNI_PATH=none"})
	var errno syscall.Errno
	if err != nil && (errors.As(err, &errno) || ctx.Err() != nil) {
		return nil, err
	}
	if err != nil {
		return nil, nil
	}
	info, err := p.Decode(out)
	if err != nil {
		return nil, nil
	}
	return info.SupportedVersions(), nil
}
