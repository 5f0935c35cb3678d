package main

import (
	"context"
	"fmt"
	"io"

	"github.com/gantry-cri/gantry/cmd/gantry/config"
)

// runConfig is the verb config.
func runConfig(_ context.Context, args []string, stdout, stderr io.Writer) int {
	f := newFlags("config", " [FLAGS]", `Prints the whole configuration as it is in effect with these flags, the
configuration file and its drop-ins, as a file that "gantry serve --config" takes.`)
	cf := addConfigFlags(f)
	plain := f.Bool("default", false, "print the defaults: read no file")
	if status, ok := f.parse(args, stdout, stderr); !ok {
		return status
	}
	var cfg config.Config
	var err error
	if *plain {
		cfg = config.Settle(config.Default())
	} else {
		cfg, err = cf.load()
	}
	if err == nil {
		err = cfg.Print(stdout)
	}
	if err != nil {
		fmt.Fprintf(stderr, "gantry config: %v\n", err)
		return exitError
	}
	if err := cfg.Validate(); err != nil && !*plain {
		fmt.Fprintf(stderr, "gantry config: \"gantry serve\" would refuse this:\n%v\n", err)
		return exitError
	}
	return exitOK
}
