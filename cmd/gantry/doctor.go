package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cmd/gantry/config"
)

// runDoctor is the verb doctor. What it tries, it tries for real, below
// temporary directories and in namespaces of its own that are gone afterwards.
func runDoctor(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 2 && args[0] == networkProbe {
		return runNetworkProbe(ctx, args[1], stderr)
	}
	f := newFlags("doctor", " [FLAGS]", `Says what this machine has and lacks for running pods, one line each: OK; WARN,
something will not work or not well; FAIL, a pod could not run. Each runtime is
made to start a container, and the built-in network to connect one. The exit
status is 1 after a FAIL. It runs beside a daemon, and changes nothing.`)
	cf := addConfigFlags(f)
	if status, ok := f.parse(args, stdout, stderr); !ok {
		return status
	}
	if err := startLogging(0, io.Discard); err != nil { // of the parts that are tried; their errors are shown
		fmt.Fprintf(stderr, "gantry doctor: %v\n", err)
		return exitError
	}
	defer klog.Flush()
	r := &report{w: stdout}
	cfg, err := cf.load()
	if err != nil {
		r.fail("configuration", err.Error())
		return exitError
	}
	if err := examine(ctx, r, cfg); err != nil {
		fmt.Fprintf(stderr, "gantry doctor: %v\n", err)
		return exitError
	}
	if ctx.Err() != nil {
		fmt.Fprintln(stderr, "gantry doctor: interrupted")
		return exitError
	}
	if r.failed {
		fmt.Fprintln(stdout, "\nA pod could not run on this machine.")
		return exitError
	}
	fmt.Fprintln(stdout, "\nPods can run on this machine.")
	return exitOK
}

// examine does all checks. An error is one of its own doing.
func examine(ctx context.Context, r *report, cfg config.Config) (err error) {
	checkConfig(r, cfg)
	checkKernel(r, cfg)
	checkCgroups(ctx, r, cfg)
	checkRegistries(r, cfg)
	if os.Geteuid() != 0 {
		r.fail("user", "not root; run gantry doctor as root, which also tries mounts, runtimes and the network")
		return nil
	}
	// On the file system of root, since that is where container file systems will be.
	dir, err := os.MkdirTemp(existing(cfg.Root), ".gantry-doctor-")
	if err != nil {
		r.fail("root", fmt.Sprintf("%v; make the file system of %s writable or choose another --root", err, cfg.Root))
		return nil
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	rootfs, unmount, err := tryOverlay(r, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(unmount(), err) }() // before the directory is removed
	if rootfs != "" {
		checkRuntimes(ctx, r, cfg, dir, rootfs)
	}
	checkNetwork(ctx, r, cfg, dir)
	return nil
}

// report prints the findings.
type report struct {
	w      io.Writer
	failed bool
}

func (r *report) ok(what, detail string)   { r.line("OK", what, detail) }
func (r *report) warn(what, detail string) { r.line("WARN", what, detail) }

// fail is for what keeps every pod from running.
func (r *report) fail(what, detail string) {
	r.failed = true
	r.line("FAIL", what, detail)
}

func (r *report) line(verdict, what, detail string) {
	// What runtimes and files say must not look like lines of ours.
	detail = strings.Join(strings.FieldsFunc(detail, func(c rune) bool { return c < ' ' || c == 0x7f }), " | ")
	fmt.Fprintf(r.w, "%-5s %s: %s\n", verdict, what, detail)
}

// require reports what pods cannot do without.
func (r *report) require(what string, err error, todo string) {
	if err != nil {
		r.fail(what, fmt.Sprintf("%v; %s", err, todo))
		return
	}
	r.ok(what, "works")
}

func checkConfig(r *report, cfg config.Config) {
	err := cfg.Validate()
	if err == nil {
		r.ok("configuration", fmt.Sprintf("root %s, run %s, socket %s, supervisor %s", cfg.Root, cfg.Run, cfg.Socket, cfg.Supervisor))
	} else if all, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range all.Unwrap() {
			r.fail("configuration", e.Error())
		}
	} else {
		r.fail("configuration", err.Error())
	}
}

// checkRegistries counts the registries that have settings of their own.
func checkRegistries(r *report, cfg config.Config) {
	found := 0
	for _, dir := range cfg.RegistryConfigDirs {
		hosts, err := filepath.Glob(filepath.Join(dir, "*", "hosts.toml"))
		if err == nil && len(hosts) > 0 {
			found++
			r.ok("registries", fmt.Sprintf("%d with a hosts.toml in %s", len(hosts), dir))
		}
	}
	if found == 0 {
		r.ok("registries", fmt.Sprintf("no hosts.toml below %s; all are asked directly, over HTTPS", strings.Join(cfg.RegistryConfigDirs, ", ")))
	}
}

// existing is the nearest directory above a path that is there.
func existing(path string) string {
	for {
		if st, err := os.Stat(path); (err == nil && st.IsDir()) || path == "/" || path == "." {
			return path
		}
		path = filepath.Dir(path)
	}
}

// freeOf reports an error of unmounting unless nothing was mounted.
func freeOf(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmounting %s: %w", path, err)
	}
	return nil
}
