package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/cgroup"
	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// subnet of the pods of the gantry that is started: the harness' would be too small for scale.
const subnet = "10.214.0.0/16"

// options are the command's flags.
type options struct {
	runtimes runtimes
	image    string
	rounds   int
	atOnce   int
	pods     int
	logMiB   int
	hostNet  bool

	scalePods    int
	recoveryPods int
	plotFile     string
	containerd   string
	crun         string
}

func main() {
	var o options
	flag.Var(&o.runtimes, "rt", "a runtime: NAME=unix://SOCKET,PROC+PROC[,HANDLER]; may be repeated; without it a gantry is started")
	flag.StringVar(&o.image, "image", images.Busybox, "image of the containers")
	flag.IntVar(&o.rounds, "n", 15, "rounds")
	flag.IntVar(&o.atOnce, "c", 8, "pods at a time in parallel")
	flag.IntVar(&o.pods, "pods", 40, "pods in parallel")
	flag.IntVar(&o.logMiB, "log-mib", 256, "MiB written to stdout in log")
	flag.BoolVar(&o.hostNet, "hostnet", false, "pods on the host's network")
	flag.IntVar(&o.scalePods, "scale-pods", 500, "pods in scale")
	flag.IntVar(&o.recoveryPods, "recovery-pods", 200, "pods in recovery")
	flag.StringVar(&o.plotFile, "plot", "", "file for an SVG plot of scale")
	flag.StringVar(&o.containerd, "containerd", "", "a containerd to measure beside the gantry that is started; its shim lies beside it")
	flag.StringVar(&o.crun, "crun", "", "a crun to measure beside runc, in the gantry that is started")
	flag.Parse()
	tests := flag.Args()
	if len(tests) == 0 {
		tests = []string{"pod", "parallel", "exec", "log"}
	}
	for _, name := range tests {
		if _, ok := table[name]; !ok {
			log.Fatalf("no test %q: there are pod, sandbox, scale, parallel, recovery, exec, log", name)
		}
	}
	if len(o.runtimes) == 0 {
		harness.Isolate()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, &o, tests); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, o *options, tests []string) (err error) {
	if len(o.runtimes) == 0 {
		registry, e := images.Serve(ctx, "127.0.0.1:0", false)
		if e != nil {
			return e
		}
		defer func() { err = errors.Join(err, registry.Close()) }()
		runc, e := harness.FindRunc()
		if e != nil {
			return e
		}
		flags := []string{"--log-level", "0"}
		if o.crun != "" {
			unmount, e := harness.MountHugetlb(podCgroups)
			if e != nil {
				return e
			}
			defer func() { err = errors.Join(err, unmount()) }()
			flags = append(flags, "--runtime", "crun="+o.crun)
		}
		i, e := harness.Start(ctx, harness.Config{Registry: registry, Subnets: subnet, Tmpfs: true, Flags: flags})
		if e != nil {
			return e
		}
		defer func() { err = errors.Join(err, i.Close()) }()
		state := filepath.Join(i.Dir, "run/runtimes")
		o.runtimes = runtimes{{name: "gantry", processes: []string{i.Dir}, cri: i.Runtime, images: i.Image,
			end: func(ctx context.Context) error { return endOf(ctx, i) }, kill: i.Kill, killAll: func() error { return killAll(i) },
			restart: func(ctx context.Context, started func(time.Time)) error { return restart(ctx, i, started) },
			oci:     []string{runc, "--root", filepath.Join(state, "runc")}}}
		if o.crun != "" {
			o.runtimes = append(o.runtimes, &criRuntime{name: "gantry crun", handler: "crun", processes: []string{i.Dir},
				cri: i.Runtime, images: i.Image, oci: []string{o.crun, "--root", filepath.Join(state, "crun")}})
		}
		if o.containerd != "" {
			r, end, e := startContainerd(ctx, o.containerd, registry)
			if e != nil {
				return e
			}
			defer func() { err = errors.Join(err, end()) }()
			o.runtimes = append(o.runtimes, r)
		}
	}
	dir, err := os.MkdirTemp("", "gantry-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{options: o, dir: dir}
	for _, r := range o.runtimes {
		if !slices.ContainsFunc(tests, func(name string) bool { return name != "sandbox" && name != "scale" }) {
			break // no containers
		}
		if err := r.pull(ctx, o.image); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	defer func() { err = errors.Join(err, cgroup.RemoveEmpty(podCgroups)) }()
	for _, name := range tests {
		b.results = map[string]*sample{}
		for _, r := range o.runtimes {
			b.results[r.name] = newSample()
		}
		if err := table[name].run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		b.print(table[name].title(o), table[name].unit)
	}
	return nil
}

// endOf ends a gantry that has no pods, and its supervisor, which would end by itself after some seconds.
func endOf(ctx context.Context, i *harness.Instance) error {
	if err := i.Stop(); err != nil {
		return err
	}
	for pids := i.SupervisorPIDs(); len(pids) > 0; pids = i.SupervisorPIDs() {
		if err := unix.Kill(pids[0], unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("ending supervisor %d: %w", pids[0], err)
		}
		if time.Sleep(10 * time.Millisecond); ctx.Err() != nil {
			return fmt.Errorf("the supervisor has not ended: %w", ctx.Err())
		}
	}
	return nil
}

// killAll kills a gantry's daemon and supervisor.
func killAll(i *harness.Instance) error {
	for _, pid := range append(i.SupervisorPIDs(), i.PID()) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return fmt.Errorf("killing process %d: %w", pid, err)
		}
	}
	return i.Kill() // waits
}

func restart(ctx context.Context, i *harness.Instance, started func(time.Time)) error {
	began := time.Now()
	i.Started = func(int) { started(began) }
	defer func() { i.Started = nil }()
	return i.StartDaemon(ctx)
}
