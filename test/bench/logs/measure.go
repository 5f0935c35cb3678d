package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	rotateEvery = 100 * time.Millisecond
	runTimeout  = 5 * time.Minute
	blockSize   = 64 << 10 / 80 * 80 // of the writer
)

// mode is one way to write.
type mode struct {
	name    string
	writers int
	rotate  bool
}

// runtime is one of those that are measured.
type runtime interface {
	title() string
	// start runs the command in a container that finds share, a folder, at /share, and logs to the file.
	start(ctx context.Context, id, share, log string, command ...string) (container, error)
	cpu() (seconds float64, err error) // of its processes so far
}

// container is a running one.
type container interface {
	reopen(ctx context.Context) error
	wait(ctx context.Context) error // until it has ended and its output is in the log
	remove(ctx context.Context) error
}

type bench struct {
	*options
	dir, guest string
	runtimes   []runtime
}

// sample is one run.
type sample struct {
	rate, cpu, parts float64
	fault            error
}

func (b *bench) measure(ctx context.Context, m mode) error {
	results := map[runtime][]sample{}
	for round := range b.rounds {
		for i := range b.runtimes {
			r := b.runtimes[(round+i)%len(b.runtimes)]
			s, err := b.once(ctx, r, m)
			if err != nil {
				return fmt.Errorf("%s: %w", r.title(), err)
			}
			if s.fault != nil {
				if r == b.runtimes[0] {
					return fmt.Errorf("%s: %w", r.title(), s.fault)
				}
				fmt.Printf("%s, %s: %v\n", m.name, r.title(), s.fault)
			}
			results[r] = append(results[r], s)
		}
	}
	b.print(m, results)
	return nil
}

// once lets containers write at once and reads their logs.
func (b *bench) once(ctx context.Context, r runtime, m mode) (s sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	share, err := os.MkdirTemp(b.dir, "run-")
	if err != nil {
		return s, err
	}
	defer os.RemoveAll(share)
	if err := os.Link(b.guest, filepath.Join(share, "guest")); err != nil {
		return s, err
	}
	if err := unix.Mkfifo(filepath.Join(share, "go"), 0o600); err != nil {
		return s, err
	}
	blocks := (b.mib<<20)/m.writers/blockSize + 1
	writers := make([]*writer, m.writers)
	var starting errgroup.Group
	starting.SetLimit(4)
	for i := range writers {
		id := fmt.Sprintf("w%d", i)
		w := &writer{id: id, share: share, log: filepath.Join(share, id, "0.log")}
		writers[i] = w
		if err := os.Mkdir(filepath.Dir(w.log), 0o755); err != nil {
			return s, err
		}
		starting.Go(func() (err error) {
			w.container, err = r.start(ctx, w.id, share, w.log, "/share/guest", "lines", w.id, strconv.Itoa(blocks), "/share")
			return err
		})
	}
	if err := starting.Wait(); err != nil {
		return s, err
	}
	defer func() {
		for _, w := range writers {
			if rerr := w.container.remove(context.WithoutCancel(ctx)); err == nil {
				err = rerr
			}
		}
	}()
	return b.observe(ctx, r, m, share, writers)
}

// observe lets the writers begin and waits for their ends.
func (b *bench) observe(ctx context.Context, r runtime, m mode, share string, writers []*writer) (s sample, err error) {
	for _, w := range writers {
		if err := waitFile(ctx, filepath.Join(share, w.id+".ready")); err != nil {
			return s, err
		}
	}
	if err := settle(share); err != nil {
		return s, err
	}
	before, err := r.cpu()
	if err != nil {
		return s, err
	}
	start, err := os.OpenFile(filepath.Join(share, "go"), os.O_RDWR, 0)
	if err != nil {
		return s, err
	}
	defer start.Close()
	var g errgroup.Group
	for _, w := range writers {
		ended := make(chan struct{})
		g.Go(func() error {
			defer close(ended)
			return w.container.wait(ctx)
		})
		if m.rotate {
			g.Go(func() error { return w.rotate(ctx, ended) })
		}
	}
	if err := g.Wait(); err != nil {
		return s, err
	}
	after, err := r.cpu()
	if err != nil {
		return s, err
	}
	s.cpu = after - before
	return s, b.account(&s, writers)
}

// account reads the logs and computes the rate.
func (b *bench) account(s *sample, writers []*writer) error {
	var began, ended, total int64
	for _, w := range writers {
		d, err := w.done()
		if err != nil {
			return err
		}
		last, parts, err := w.check(d)
		if err != nil && s.fault == nil {
			s.fault = fmt.Errorf("%s: %w", w.id, err)
		}
		s.parts += float64(parts)
		if began == 0 || d.began < began {
			began = d.began
		}
		ended, total = max(ended, last), total+d.bytes
	}
	s.rate = float64(total) / (1 << 20) / (float64(ended-began) / 1e9)
	return nil
}

// settle lets the disk come to rest.
func settle(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

func waitFile(ctx context.Context, path string) error {
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", path, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// print writes the medians of one mode, and how many times the others' Gantry's are.
func (b *bench) print(m mode, results map[runtime][]sample) {
	fmt.Printf("\n%-24s", m.name)
	for _, r := range b.runtimes {
		fmt.Printf("%24s", r.title())
	}
	for _, row := range []struct {
		name string
		of   func(sample) float64
	}{
		{"MiB/s", func(s sample) float64 { return s.rate }},
		{"CPU s", func(s sample) float64 { return s.cpu }},
		{"parts", func(s sample) float64 { return s.parts }},
	} {
		fmt.Printf("\n  %-22s", row.name)
		for _, r := range b.runtimes {
			var values []float64
			for _, s := range results[r] {
				values = append(values, row.of(s))
			}
			slices.Sort(values)
			fmt.Printf("%24s", strings.TrimSuffix(fmt.Sprintf("%.2f", values[len(values)/2]), ".00"))
		}
	}
	fmt.Println()
}
