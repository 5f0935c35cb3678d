package ocispec

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

	// What execve(2) takes at most: one string (MAX_ARG_STRLEN) and all of them
	// with their pointers, which never get more than 6 MiB whatever the stack limit.
	maxArgBytes  = 128<<10 - 1
	maxArgsBytes = 6 << 20
)

// process is the container's first process, but for what confines it.
func process(n Node, p Pod, c Container) (*specs.Process, []string, error) {
	args, err := args(c.Config, c.Image)
	if err != nil {
		return nil, nil, err
	}
	env, warnings, err := environment(p, c)
	if err != nil {
		return nil, nil, err
	}
	if err := checkArgSpace(args, env); err != nil {
		return nil, nil, err
	}
	cwd, err := workingDir(c.Config, c.Image)
	if err != nil {
		return nil, nil, err
	}
	score, err := OOMScoreAdj(n, c.Config.GetLinux().GetResources())
	if err != nil {
		return nil, nil, err
	}
	return &specs.Process{
		Terminal:        c.Config.GetTty(),
		User:            specUser(c.User),
		Args:            args,
		Env:             env,
		Cwd:             cwd,
		OOMScoreAdj:     &score,
		Rlimits:         rlimits(n),
		NoNewPrivileges: c.Config.GetLinux().GetSecurityContext().GetNoNewPrivs(),
	}, warnings, nil
}

func specUser(u User) specs.User {
	return specs.User{UID: u.UID, GID: u.GID, AdditionalGids: slices.Clone(u.Groups)}
}

// args joins command and args of the request with the image's Entrypoint and
// Cmd: command replaces the Entrypoint and drops Cmd, args replace Cmd alone.
func args(cfg *runtimeapi.ContainerConfig, image imagespec.ImageConfig) ([]string, error) {
	entrypoint, cmd := image.Entrypoint, image.Cmd
	if len(cfg.GetCommand()) > 0 {
		entrypoint, cmd = cfg.GetCommand(), nil
	}
	if len(cfg.GetArgs()) > 0 {
		cmd = cfg.GetArgs()
	}
	all := slices.Concat(entrypoint, cmd)
	if len(all) == 0 {
		return nil, fmt.Errorf("command: neither the request nor the image's Entrypoint or Cmd names a program: %w", errdefs.ErrInvalidArgument)
	}
	if all[0] == "" {
		return nil, fmt.Errorf("command: the program's name is empty: %w", errdefs.ErrInvalidArgument)
	}
	for i, a := range all {
		if err := checkText(a); err != nil {
			return nil, fmt.Errorf("command or args, string %d: %w", i, err)
		}
	}
	return all, nil
}

// environment is the image's, then what the runtime gives (PATH and TERM
// where the image has none, HOSTNAME), then the request's, a later value
// taking the place of an earlier one of that name.
func environment(p Pod, c Container) (env, warnings []string, err error) {
	var vars envVars
	for i, e := range c.Image.Env {
		key, value, ok := strings.Cut(e, "=")
		if !ok || key == "" {
			// No program wrote such an entry on purpose, and tools that expand
			// it would take the daemon's own environment (CVE-2026-57231).
			warnings = append(warnings, fmt.Sprintf("left out entry %d of the image's Env, which is not of the form NAME=value", i))
			continue
		}
		if err := checkText(e); err != nil {
			return nil, nil, fmt.Errorf("the image's Env, entry %d: %w", i, err)
		}
		vars.set(key, value)
	}
	vars.setDefault("PATH", strings.TrimPrefix(defaultPath, "PATH="))
	if c.Config.GetTty() {
		vars.setDefault("TERM", "xterm")
	}
	if p.Hostname != "" {
		vars.set("HOSTNAME", p.Hostname)
	}
	for i, kv := range c.Config.GetEnvs() {
		key, value := kv.GetKey(), string(kv.GetValue())
		if key == "" || strings.Contains(key, "=") {
			return nil, nil, fmt.Errorf("envs, entry %d: the name %q is empty or holds an equals sign: %w", i, key, errdefs.ErrInvalidArgument)
		}
		for _, s := range []string{key, value} {
			if err := checkText(s); err != nil {
				return nil, nil, fmt.Errorf("envs, entry %d (%q): %w", i, key, err)
			}
		}
		vars.set(key, value)
	}
	return vars.list, warnings, nil
}

// envVars keeps NAME=value entries in the order in which the names came.
type envVars struct {
	list  []string
	index map[string]int
}

func (v *envVars) set(key, value string) {
	if i, ok := v.index[key]; ok {
		v.list[i] = key + "=" + value
		return
	}
	if v.index == nil {
		v.index = make(map[string]int)
	}
	v.index[key] = len(v.list)
	v.list = append(v.list, key+"="+value)
}

func (v *envVars) setDefault(key, value string) {
	if _, ok := v.index[key]; !ok {
		v.set(key, value)
	}
}

// checkText refuses what cannot be handed to a process through config.json:
// a NUL ends the string early, and JSON would replace bytes that are not UTF-8
// by others. Secrets may be in s, so the error does not quote it.
func checkText(s string) error {
	switch {
	case strings.Contains(s, "\x00"):
		return fmt.Errorf("holds a NUL byte: %w", errdefs.ErrInvalidArgument)
	case !utf8.ValidString(s):
		return fmt.Errorf("is not UTF-8, the only text that an OCI runtime takes: %w", errdefs.ErrInvalidArgument)
	case len(s) > maxArgBytes:
		return fmt.Errorf("has %d bytes, execve takes %d at most: %w", len(s), maxArgBytes, errdefs.ErrInvalidArgument)
	}
	return nil
}

func checkArgSpace(args, env []string) error {
	size := 0
	for _, s := range slices.Concat(args, env) {
		size += len(s) + 1 + 8
	}
	if size > maxArgsBytes {
		return fmt.Errorf("command, args and envs take %d bytes together, execve takes %d at most: %w", size, maxArgsBytes, errdefs.ErrInvalidArgument)
	}
	return nil
}

// workingDir is the request's, else the image's, else the root. Paths into
// /proc are refused: one that names a descriptor of the runtime is a way out
// of the container (CVE-2024-21626).
func workingDir(cfg *runtimeapi.ContainerConfig, image imagespec.ImageConfig) (string, error) {
	field, dir := "working_dir", cfg.GetWorkingDir()
	if dir == "" {
		field, dir = "the image's WorkingDir", image.WorkingDir
	}
	if dir == "" {
		return "/", nil
	}
	clean, err := cleanPath(dir)
	if err != nil {
		return "", fmt.Errorf("%s: %w", field, err)
	}
	if beneath(clean, "/proc") && clean != "/proc" || beneath(clean, "/dev/fd") {
		return "", fmt.Errorf("%s: %q lies in /proc: %w", field, dir, errdefs.ErrInvalidArgument)
	}
	return clean, nil
}

// cleanPath takes an absolute path without ".." (which means one thing
// before symlinks are followed and another thereafter) and returns it without
// empty and "." components.
func cleanPath(p string) (string, error) {
	switch {
	case len(p) >= 4096:
		return "", fmt.Errorf("path %.64q... has %d bytes, the kernel takes 4095: %w", p, len(p), errdefs.ErrInvalidArgument)
	case !path.IsAbs(p):
		return "", fmt.Errorf("path %q is not absolute: %w", p, errdefs.ErrInvalidArgument)
	case slices.Contains(strings.Split(p, "/"), ".."):
		return "", fmt.Errorf("path %q holds \"..\": %w", p, errdefs.ErrInvalidArgument)
	case strings.Contains(p, "\x00") || !utf8.ValidString(p):
		return "", fmt.Errorf("path %q is not plain text: %w", p, errdefs.ErrInvalidArgument)
	}
	return path.Clean(p), nil
}

// beneath says whether the clean path p is dir or lies below it.
func beneath(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// OOMScoreAdj is what was asked for, raised to what the node may give.
func OOMScoreAdj(n Node, r *runtimeapi.LinuxContainerResources) (int, error) {
	asked := r.GetOomScoreAdj()
	if asked < -1000 || asked > 1000 {
		return 0, fmt.Errorf("oom_score_adj %d is not between -1000 and 1000: %w", asked, errdefs.ErrInvalidArgument)
	}
	return max(int(asked), n.MinOOMScoreAdj), nil
}

// BuildExec is the process of an exec in the container that spec was built
// for: cmd with the same user, environment, capabilities, limits, labels and
// directory as the first process. The OCI runtime adds the namespaces, the
// cgroup and the seccomp filter from the container itself. spec is not changed
// and shares nothing with the result.
func BuildExec(spec *specs.Spec, cmd []string, tty bool) *specs.Process {
	p := *spec.Process
	p.Args = slices.Clone(cmd)
	p.Terminal = tty
	p.ConsoleSize = nil
	vars := envVars{}
	for _, e := range p.Env {
		key, value, _ := strings.Cut(e, "=")
		vars.set(key, value)
	}
	if tty {
		vars.setDefault("TERM", "xterm")
	}
	p.Env = vars.list
	p.User.AdditionalGids = slices.Clone(p.User.AdditionalGids)
	p.Rlimits = slices.Clone(p.Rlimits)
	if p.OOMScoreAdj != nil {
		score := *p.OOMScoreAdj
		p.OOMScoreAdj = &score
	}
	if p.Capabilities != nil {
		caps := *p.Capabilities
		for _, set := range []*[]string{&caps.Bounding, &caps.Effective, &caps.Inheritable, &caps.Permitted, &caps.Ambient} {
			*set = slices.Clone(*set)
		}
		p.Capabilities = &caps
	}
	return &p
}
