package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// burst is how many ExecSync are made at once.
const burst = 50

// pause is before each that is made alone: as between probes, what the kernel keeps ready for a while after the one
// before is not.
const pause = 100 * time.Millisecond

// exec measures ExecSync of true, one at a time, beside the OCI runtime's own exec run by hand; then many at once, and
// one in a container while another one is flooded with them.
func (b *bench) exec(ctx context.Context) error {
	type target struct {
		*criRuntime
		*sample
		x, other running
		hand     map[string]func() error
	}
	var all []*target
	for _, r := range b.runtimes {
		t := &target{criRuntime: r, sample: b.results[r.name]}
		var err error
		if t.x, err = b.start(ctx, r, newSample(), sleeper...); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		if t.other, err = b.start(ctx, r, newSample(), sleeper...); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		if t.hand, err = b.byHand(ctx, r, t.x.container); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		all = append(all, t)
	}
	for round := range 5*b.rounds + 1 {
		for _, t := range all {
			s := t.sample
			if round == 0 {
				s = newSample() // warming up
			}
			for name, run := range t.hand {
				time.Sleep(pause)
				began := time.Now()
				if err := run(); err != nil {
					return fmt.Errorf("%s: %s: %w", t.name, name, err)
				}
				s.since(name, began)
			}
			time.Sleep(pause)
			began := time.Now()
			if err := t.execTrue(ctx, t.x.container); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			s.since("1 ExecSync", began)
		}
	}
	for range b.rounds {
		for _, t := range all {
			if err := t.burst(ctx, t.sample, t.x.container, t.other.container); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
		}
	}
	for _, t := range all {
		for _, x := range []running{t.x, t.other} {
			if err := b.stop(ctx, t.criRuntime, newSample(), x); err != nil {
				return err
			}
		}
	}
	return nil
}

// burst makes all at once in one container, then again, with probes of another one meanwhile.
func (r *criRuntime) burst(ctx context.Context, s *sample, flooded, probed string) error {
	flood := func(note *sample) error {
		var g errgroup.Group
		began := time.Now()
		for range burst {
			g.Go(func() error {
				err := r.execTrue(ctx, flooded)
				note.since(fmt.Sprintf("4 each of %d at once", burst), began)
				return err
			})
		}
		err := g.Wait()
		note.since(fmt.Sprintf("5 all of %d at once", burst), began)
		return err
	}
	if err := flood(s); err != nil {
		return err
	}
	var g errgroup.Group
	var over atomic.Bool
	g.Go(func() error {
		defer over.Store(true)
		return flood(newSample())
	})
	for !over.Load() {
		began := time.Now()
		if err := r.execTrue(ctx, probed); err != nil {
			return errors.Join(err, g.Wait())
		}
		s.since("6 another's beside those", began)
	}
	return g.Wait()
}

// byHand are the commands of the runtime's OCI runtime that run true in the container.
func (b *bench) byHand(ctx context.Context, r *criRuntime, container string) (map[string]func() error, error) {
	if len(r.oci) == 0 {
		return nil, nil
	}
	command := func(args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, r.oci[0], append(r.oci[1:len(r.oci):len(r.oci)], args...)...)
	}
	out, err := command("state", container).Output()
	if err != nil {
		return nil, fmt.Errorf("asking %s for its container: %w", r.oci[0], err)
	}
	var state specs.State
	if err := json.Unmarshal(out, &state); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(filepath.Join(state.Bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return nil, err
	}
	spec.Process.Args = []string{"true"}
	if raw, err = json.Marshal(spec.Process); err != nil {
		return nil, err
	}
	file, pidFile := filepath.Join(b.dir, container+".json"), filepath.Join(b.dir, container+".pid")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		return nil, err
	}
	return map[string]func() error{
		"2 exec by hand": func() error { return command("exec", "--process", file, container).Run() },
		"3 exec --detach by hand": func() error {
			err := command("exec", "--detach", "--process", file, "--pid-file", pidFile, container).Run()
			return errors.Join(err, waitFor(pidFile))
		},
	}, nil
}

// waitFor waits for the process of a pid file, which falls to this process, a subreaper. Left a zombie, it would keep
// its container's PID namespace from ending.
func waitFor(pidFile string) error {
	raw, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return err
	}
	for {
		_, err = unix.Wait4(pid, nil, 0, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
