package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/gantry-cri/gantry/cmd/gantry/config"
)

// flags parses the arguments of one verb. A flag is described by its usage
// text, with the name of its value in back quotes, and by what it is when not given.
type flags struct {
	*flag.FlagSet
	line, about string // of the help
	defaults    map[string]string
}

func newFlags(verb, synopsis, about string) *flags {
	f := &flags{FlagSet: flag.NewFlagSet(verb, flag.ContinueOnError), line: "gantry " + verb + synopsis, about: about, defaults: map[string]string{}}
	f.SetOutput(io.Discard) // parse prints
	return f
}

// parse returns whether the verb shall go on, and the exit status if not.
func (f *flags) parse(args []string, stdout, stderr io.Writer) (status int, ok bool) {
	err := f.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		f.help(stdout)
		return exitOK, false
	}
	if err == nil && f.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(stderr, "gantry %s: %v\n\n", f.Name(), err)
		f.help(stderr)
		return exitUsage, false
	}
	return exitOK, true
}

func (f *flags) help(w io.Writer) {
	fmt.Fprintf(w, "Usage: %s\n\n%s\n", f.line, f.about)
	first := true
	f.VisitAll(func(fl *flag.Flag) {
		if first {
			fmt.Fprint(w, "\nFlags:\n")
			first = false
		}
		value, text := flag.UnquoteUsage(fl)
		if b, ok := fl.Value.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
			value = ""
		}
		if d := f.defaults[fl.Name]; d != "" {
			text += " (default " + d + ")"
		}
		dashes := "--"[:min(2, len(fl.Name))] // -o
		fmt.Fprintf(w, "  %-28s %s\n", strings.TrimSpace(dashes+fl.Name+" "+value), text)
	})
}

// configFlags are the flags that name the configuration and change it.
type configFlags struct {
	file      string
	overrides []func(*config.Config)
}

// load reads the configuration that the flags name and puts them over it.
func (c *configFlags) load() (config.Config, error) {
	return config.Load(c.file, func(cfg *config.Config) {
		for _, f := range c.overrides {
			f(cfg)
		}
	})
}

// addConfigFlags defines the flags that serve, config and doctor have in common.
func addConfigFlags(f *flags) *configFlags {
	c := new(configFlags)
	d := config.Default()
	f.Func("config", "`FILE` of the configuration; *.toml of FILE.d are read after it", func(s string) error {
		if s == "" {
			return errors.New("name a file")
		}
		c.file = s
		return nil
	})
	f.defaults["config"] = config.DefaultFile + ", which may be missing"
	text := func(name, usage, shown string, field func(*config.Config) *string) {
		f.defaults[name] = shown
		f.Func(name, usage, func(s string) error {
			if s == "" {
				return errors.New("must not be empty")
			}
			c.overrides = append(c.overrides, func(cfg *config.Config) { *field(cfg) = s })
			return nil
		})
	}
	text("root", "`DIR` of what outlives a reboot", d.Root, func(c *config.Config) *string { return &c.Root })
	text("run", "`DIR` of what lasts until a reboot", d.Run, func(c *config.Config) *string { return &c.Run })
	text("socket", "`PATH` of the CRI's Unix socket", "gantry.sock in --run", func(c *config.Config) *string { return &c.Socket })
	text("supervisor", "`PATH` of gantry-supervisor", "beside gantry, else in PATH", func(c *config.Config) *string { return &c.Supervisor })
	text("cni-conf-dir", "`DIR` of CNI configurations", d.CNI.ConfDir, func(c *config.Config) *string { return &c.CNI.ConfDir })
	c.list(f, "cni-bin-dir", "`DIR` of CNI plugins; again or with commas for several", d.CNI.BinDirs, func(c *config.Config) *[]string { return &c.CNI.BinDirs })
	c.list(f, "registry-config-dir", "`DIR` with a hosts.toml per registry; again or with commas for several", d.RegistryConfigDirs, func(c *config.Config) *[]string { return &c.RegistryConfigDirs })
	c.runtimes(f)
	text("default-runtime", "`NAME` of the runtime of pods that ask for none", "runc, else crun, else the first by name", func(c *config.Config) *string { return &c.DefaultRuntime })
	text("cgroup-driver", "`NAME` of who makes cgroups: cgroupfs or systemd", d.CgroupDriver, func(c *config.Config) *string { return &c.CgroupDriver })
	text("network", "`NAME` of the network without CNI configuration: gantry-bridge or none", d.Network.Default, func(c *config.Config) *string { return &c.Network.Default })
	text("bridge", "`NAME` of the built-in network's bridge", d.Network.Bridge, func(c *config.Config) *string { return &c.Network.Bridge })
	text("table", "`NAME` of the built-in network's nftables table", "follows --bridge", func(c *config.Config) *string { return &c.Network.Table })
	c.subnets(f, d)
	f.defaults["log-level"] = strconv.Itoa(d.LogLevel)
	f.Func("log-level", "`N` from 0 (least) to 10", func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil {
			return errors.New("give a number from 0 to 10")
		}
		c.overrides = append(c.overrides, func(cfg *config.Config) { cfg.LogLevel = n })
		return nil
	})
	return c
}

// list defines a flag whose values together replace a list of the configuration.
func (c *configFlags) list(f *flags, name, usage string, shown []string, field func(*config.Config) *[]string) {
	var all []string
	f.defaults[name] = strings.Join(shown, ",")
	f.Func(name, usage, func(s string) error {
		parts := strings.Split(s, ",")
		if slices.Contains(parts, "") {
			return errors.New("holds an empty name")
		}
		all = append(all, parts...)
		c.overrides = append(c.overrides, func(cfg *config.Config) { *field(cfg) = all })
		return nil
	})
}

func (c *configFlags) runtimes(f *flags) {
	f.defaults["runtime"] = "runc and crun, where installed"
	f.Func("runtime", "`NAME=PATH` of an OCI runtime; again for several", func(s string) error {
		name, path, ok := strings.Cut(s, "=")
		if !ok || name == "" || path == "" {
			return errors.New("give NAME=PATH")
		}
		c.overrides = append(c.overrides, func(cfg *config.Config) {
			if cfg.Runtimes == nil {
				cfg.Runtimes = map[string]config.Runtime{}
			}
			r := cfg.Runtimes[name]
			r.Path = path
			cfg.Runtimes[name] = r
		})
		return nil
	})
}

func (c *configFlags) subnets(f *flags, d config.Config) {
	var all []netip.Prefix
	f.defaults["subnet"] = d.Network.Subnets[0].String()
	f.Func("subnet", "`PREFIX` of the built-in network's pods; again or with a comma for IPv6 too", func(s string) error {
		for part := range strings.SplitSeq(s, ",") {
			p, err := netip.ParsePrefix(part)
			if err != nil {
				return errors.New("give a prefix such as 10.86.0.0/16")
			}
			all = append(all, p)
		}
		c.overrides = append(c.overrides, func(cfg *config.Config) { cfg.Network.Subnets = all })
		return nil
	})
}
