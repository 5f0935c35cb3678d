// Command pulls measures image pulls of Gantry, and of the containerds named as arguments, from a registry of its own
// on loopback, in namespaces of its own (root):
//
//	pulls [-n ROUNDS] [-images SUBSTRING] [CONTAINERD]...
//
// The runtimes take turns, so that a drift of the machine falls on all of them; only ratios within one run are worth
// quoting. An image is removed before it is pulled again. For each pull:
//
//	wall     from PullImage to its answer
//	CPU      user and system time of the daemon and its children, until half a second later
//	peak     most resident memory of the daemon during the pull (VmHWM)
//	written  what the daemon and its children had sent to disk (write_bytes)
//	disk     blocks beneath the runtime's root, beyond those of the empty one
//
// The registry is a process of its own, whose time is in no figure but wall.
package main

import (
	"bufio"
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

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

func main() {
	rounds := flag.Int("n", 5, "rounds")
	part := flag.String("images", "", "only the images with this in their name")
	flag.Parse()
	harness.Isolate()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *rounds, *part, flag.Args()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, rounds int, part string, peers []string) (err error) {
	dir, err := os.MkdirTemp("", "gantry-pulls-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	registry, end, err := serve(ctx, dir)
	if err != nil {
		return fmt.Errorf("starting the registry: %w", err)
	}
	defer func() { err = errors.Join(err, end()) }()
	gantry, err := startGantry(ctx, registry)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, gantry.stop()) }()
	runtimes := []*daemon{gantry}
	for i, path := range peers {
		d, err := startContainerd(ctx, path, filepath.Join(dir, fmt.Sprint("peer", i)), registry)
		if err != nil {
			return fmt.Errorf("starting %s: %w", path, err)
		}
		defer func() { err = errors.Join(err, d.stop()) }()
		runtimes = append(runtimes, d)
	}
	for _, image := range images.Benchmarks() {
		if !strings.Contains(image, part) {
			continue
		}
		results := map[*daemon][]sample{}
		for round := range rounds {
			for i := range runtimes {
				d := runtimes[(round+i)%len(runtimes)]
				s, err := d.measure(ctx, image)
				if err != nil {
					return fmt.Errorf("%s: %w", d.name, err)
				}
				results[d] = append(results[d], s)
			}
		}
		print(image, runtimes, results)
	}
	return nil
}

// serve runs the registry as a process of its own.
func serve(ctx context.Context, dir string) (*images.Registry, func() error, error) {
	program := filepath.Join(dir, "serve")
	if out, err := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", program, "github.com/gantry-cri/gantry/test/images/serve").CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("building it: %w\n%s", err, out)
	}
	cmd := exec.Command(program, "-listen", "127.0.0.1:0", "-bench")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	end := func() error { return errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()) }
	lines := bufio.NewScanner(out)
	lines.Scan()
	addr, ok := strings.CutPrefix(lines.Text(), "serving the test images on ")
	if !ok {
		return nil, nil, errors.Join(fmt.Errorf("it said %q", lines.Text()), end())
	}
	return &images.Registry{Addr: addr}, end, nil
}
