package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// runServe is the verb serve; what the daemon is made of is in serve.go.
func runServe(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	f := newFlags("serve", " [FLAGS]", `Runs the daemon, which serves the Container Runtime Interface on a Unix socket
until SIGTERM or SIGINT. Containers run on without it. Flags go before the
configuration file.`)
	cf := addConfigFlags(f)
	if status, ok := f.parse(args, stdout, stderr); !ok {
		return status
	}
	cfg, err := cf.load()
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		fmt.Fprintf(stderr, "gantry serve: %v\n", err)
		return exitError
	}
	if err := startLogging(cfg.LogLevel, stderr); err != nil {
		fmt.Fprintf(stderr, "gantry serve: %v\n", err)
		return exitError
	}
	defer klog.Flush()
	// A line of the log whose reader has died is an error, not the daemon's end
	// (package signal). Not signal.Ignore, which what it starts would inherit.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	// Files whose mode nobody thought of must not depend on who started the daemon.
	unix.Umask(0o022)
	if err := serve(ctx, cfg); err != nil {
		fmt.Fprintf(stderr, "gantry serve: %v\n", err)
		return exitError
	}
	return exitOK
}

// startLogging sends klog's lines to w, plain.
func startLogging(level int, w io.Writer) error {
	var f flag.FlagSet
	klog.InitFlags(&f)
	for name, value := range map[string]string{"v": strconv.Itoa(level), "logtostderr": "false", "stderrthreshold": "FATAL", "one_output": "true"} {
		if err := f.Set(name, value); err != nil {
			return fmt.Errorf("setting up the log: %w", err)
		}
	}
	klog.SetOutput(w)
	return nil
}
