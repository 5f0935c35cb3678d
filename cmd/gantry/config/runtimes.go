package config

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
)

var (
	handlerName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	runtimeOption = regexp.MustCompile(`^--([a-z][a-z0-9-]*)(=[[:print:]]*)?$`)
)

const (
	maxOptions      = 32
	maxOptionLength = 4096 // bytes
)

// ownOptions are the global options that Gantry gives to OCI runtimes itself,
// or that would contradict those.
var ownOptions = []string{"root", "log", "log-format", "systemd-cgroup", "cgroup-manager", "version", "help"}

func (c Config) checkRuntimes() (errs []error) {
	if len(c.Runtimes) == 0 {
		return []error{errors.New("runtimes: neither runc nor crun is installed; install one, or name one with --runtime NAME=PATH or [runtimes.NAME] path")}
	}
	names := slices.Sorted(maps.Keys(c.Runtimes))
	for _, name := range names {
		key := "runtimes." + name + ".path"
		if !handlerName.MatchString(name) {
			errs = append(errs, fmt.Errorf("runtimes.%q: a runtime's name has up to 63 letters, digits, \".\", \"_\" and \"-\"; rename it", name))
		}
		switch path := c.Runtimes[name].Path; {
		case path == "":
			errs = append(errs, wrong(key, path, "give the path of the OCI runtime"))
		case strings.Contains(path, "/") && !filepath.IsAbs(path):
			errs = append(errs, wrong(key, path, "give an absolute path, or a name to be looked for in PATH"))
		case name == c.DefaultRuntime:
			if err := c.missing(name); err != nil {
				errs = append(errs, err)
			}
		}
		errs = slices.Concat(errs, c.checkRuntimeRoot(name), checkOptions(name, c.Runtimes[name].Options), checkAnnotations(name, c.Runtimes[name].Annotations))
	}
	if _, ok := c.Runtimes[c.DefaultRuntime]; !ok {
		errs = append(errs, wrong("default_runtime", c.DefaultRuntime, "is none of the runtimes (%s); name one of them", strings.Join(names, ", ")))
	}
	return errs
}

// Missing are the runtimes other than the default one whose program cannot be
// executed, by name, each with an error that says what to do. Only pods that
// ask for one of them fail; the node and its other pods go on.
func (c Config) Missing() map[string]error {
	out := map[string]error{}
	for name := range c.Runtimes {
		if err := c.missing(name); err != nil && name != c.DefaultRuntime {
			out[name] = err
		}
	}
	return out
}

func (c Config) missing(name string) error {
	key, path := "runtimes."+name+".path", c.Runtimes[name].Path
	if !strings.Contains(path, "/") {
		return wrong(key, path, "is not in PATH; install it or give its absolute path")
	}
	if err := program(path); err != nil {
		return wrong(key, path, "%v; install it or correct the path", err)
	}
	return nil
}

// checkRuntimeRoot: two runtimes with one root would take each other's
// containers for their own.
func (c Config) checkRuntimeRoot(name string) (errs []error) {
	key, root := "runtimes."+name+".root", c.Runtimes[name].Root
	if root == "" { // settled later
		return nil
	}
	if !filepath.IsAbs(root) || filepath.Clean(root) != root || root == "/" {
		errs = append(errs, wrong(key, root, "give a clean absolute path"))
	}
	for other, r := range c.Runtimes {
		if other < name && r.Root == root {
			errs = append(errs, wrong(key, root, "is the root of runtime %s too; give each its own", other))
		}
	}
	return errs
}

func checkOptions(name string, options []string) (errs []error) {
	key := "runtimes." + name + ".options"
	if len(options) > maxOptions {
		errs = append(errs, wrong(key, len(options), "are more than %d", maxOptions))
	}
	for _, o := range options {
		m := runtimeOption.FindStringSubmatch(o)
		switch {
		case m == nil || len(o) > maxOptionLength:
			errs = append(errs, wrong(key, o, "write an option as --NAME or --NAME=VALUE"))
		case slices.Contains(ownOptions, m[1]):
			errs = append(errs, wrong(key, o, "Gantry says this itself (runtimes.NAME.root, cgroup_driver); remove it"))
		}
	}
	return errs
}

func checkAnnotations(name string, entries []string) (errs []error) {
	key := "runtimes." + name + ".annotations"
	if _, err := ocispec.NewAnnotationFilter(entries, nil); err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", key, err))
	}
	return errs
}
