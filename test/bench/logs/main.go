// Command logs measures the way from a container's stdout to its log file, of Gantry and of peers, in namespaces of
// its own (root):
//
//	logs [-n ROUNDS] [-mib N] [-many N] [-silent N] [-only TEXT] [-conmon PATH] [CONTAINERD]...
//
// The container writes numbered lines of 80 bytes in blocks of 64 KiB (test/images/guest). There is one of them, or
// there are many that begin at once; and in the modes with rotation each log is renamed and reopened every 100 ms. The
// runtimes take turns within a round, so that a drift of the machine falls on all; only ratios within one run are
// worth quoting.
//
//	MiB/s    of what the containers wrote, from the first byte to the last change of the last log
//	CPU s    of the runtime's processes: daemon, supervisor, shims, conmon, meanwhile
//	parts    lines that were split though they are not long
//
// Every log is read afterwards: each line whole, each line there, once and in its place, and the CRC-32C of all is what
// the container computed while it wrote. Gantry must pass; of a peer that does not, the fault is printed.
//
// The conmon is driven by hand, with runc, as CRI-O and Podman do it. With -silent it then measures what as many
// containers that write nothing cost Gantry's supervisor.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/gantry-cri/gantry/sandbox/cgroup"
	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

type options struct {
	rounds, mib, many, silent int
	only, conmon              string
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "n", 3, "rounds")
	flag.IntVar(&o.mib, "mib", 1024, "MiB that are written in one run")
	flag.IntVar(&o.many, "many", 50, "containers at once")
	flag.IntVar(&o.silent, "silent", 500, "containers that write nothing; 0: none")
	flag.StringVar(&o.only, "only", "", "only modes with this in their name")
	flag.StringVar(&o.conmon, "conmon", "", "a conmon to measure too")
	flag.Parse()
	harness.Isolate()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, &o, flag.Args()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, o *options, peers []string) (err error) {
	dir, err := os.MkdirTemp("", "gantry-logs-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	guest := filepath.Join(dir, "guest")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", guest, "github.com/gantry-cri/gantry/test/images/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the writer: %w\n%s", err, out)
	}
	registry, err := images.Serve(ctx, "127.0.0.1:0", false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, registry.Close()) }()
	gantry, err := startGantry(ctx, registry)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, gantry.end()) }()
	runtimes := []runtime{gantry}
	for i, path := range peers {
		d, err := startContainerd(ctx, path, filepath.Join(dir, fmt.Sprint("peer", i)), registry)
		if err != nil {
			return fmt.Errorf("starting %s: %w", path, err)
		}
		defer func() { err = errors.Join(err, d.end()) }()
		runtimes = append(runtimes, d)
	}
	if o.conmon != "" {
		c, err := newConmon(o.conmon, dir)
		if err != nil {
			return err
		}
		runtimes = append(runtimes, c)
	}
	defer func() { err = errors.Join(err, cgroup.RemoveEmpty(cgroups)) }()
	b := &bench{options: o, dir: dir, guest: guest, runtimes: runtimes}
	for _, m := range []mode{
		{"one container", 1, false}, {"one container, rotated", 1, true},
		{fmt.Sprintf("%d containers", o.many), o.many, false}, {fmt.Sprintf("%d containers, rotated", o.many), o.many, true},
	} {
		if strings.Contains(m.name, o.only) {
			if err := b.measure(ctx, m); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
		}
	}
	if o.silent > 0 {
		return b.silence(ctx, gantry)
	}
	return nil
}
