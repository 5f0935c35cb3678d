package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// change is one value to be written to a file of the cgroup.
type change struct {
	controller, file, value string
}

// Update changes the limits that r sets to other than nil, zero and "", and
// then calls commit, if that is not nil: all of them or, after an error of
// either, none. Memory.Limit and Swap, CPU.Shares, Quota, Period, Cpus, Mems,
// Pids.Limit, HugepageLimits and, on version 2, Unified can be changed; any
// other is errdefs.ErrInvalidArgument. Devices are passed over: their rules are
// of the container's start. Without Memory.Swap a new Memory.Limit leaves the
// amount of swap alone as it is. A memory limit below the working set is
// errdefs.ErrFailedPrecondition: version 2 would kill for it.
//
// The files are written directly. Systemd, where it made the cgroup, sets them
// to its unit's properties again when it pleases; telling it is commit's.
func (g *Group) Update(r *specs.LinuxResources, commit func() error) error {
	if r == nil {
		r = &specs.LinuxResources{}
	}
	if !g.t.exists(g.path) {
		return fmt.Errorf("updating cgroup %s: %w", g.path, gone(os.ErrNotExist))
	}
	changes, err := g.plan(r)
	if err == nil {
		err = g.apply(changes, commit)
	}
	if err != nil {
		return fmt.Errorf("updating cgroup %s: %w", g.path, err)
	}
	return nil
}

// apply writes the changes in order and calls commit. When one fails, those
// before it are undone in the opposite order, so that each step back is a step
// that the kernel allowed in the other direction.
func (g *Group) apply(changes []change, commit func() error) error {
	var done []change // with the old values
	undo := func(err error) error {
		errs := []error{err}
		for _, c := range slices.Backward(done) {
			if err := g.restore(c); err != nil {
				errs = append(errs, fmt.Errorf("undoing: %w", err))
			}
		}
		return errors.Join(errs...)
	}
	for _, c := range changes {
		old, err := g.read(c.controller, c.file)
		if err == nil && old == c.value {
			continue
		}
		if err == nil {
			err = g.write(c.controller, c.file, c.value)
		}
		if err != nil {
			return undo(err)
		}
		done = append(done, change{c.controller, c.file, old})
	}
	if commit != nil {
		if err := commit(); err != nil {
			return undo(err)
		}
	}
	return nil
}

// restore writes an old value; that of some version 2 files (io.max) is one
// line per device, each of which must be written by itself.
func (g *Group) restore(c change) error {
	for line := range strings.Lines(c.value) {
		if err := g.write(c.controller, c.file, strings.TrimSuffix(line, "\n")); err != nil {
			return err
		}
	}
	return nil
}

func (g *Group) read(controller, name string) (string, error) {
	file, err := g.file(controller, name)
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", gone(err)
	}
	return strings.TrimSpace(string(data)), nil
}

func (g *Group) write(controller, name, value string) error {
	file, err := g.file(controller, name)
	if err != nil {
		return err
	}
	return gone(writeFile(file, value))
}

func (g *Group) has(controller, name string) bool {
	file, err := g.file(controller, name)
	if err != nil {
		return false
	}
	_, err = os.Lstat(file)
	return err == nil
}

// file is the path of one of the cgroup's own files.
func (g *Group) file(controller, name string) (string, error) {
	file := g.t.file(controller, g.path, name)
	if file == "" {
		return "", fmt.Errorf("%s: this node has no cgroup controller %q: %w", name, controller, os.ErrNotExist)
	}
	if filepath.Base(file) != name {
		return "", fmt.Errorf("%q is not the name of a cgroup file: %w", name, os.ErrInvalid)
	}
	return file, nil
}
