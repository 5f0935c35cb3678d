package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

const (
	loopbackType = "loopback"

	pluginTimeout = 2 * time.Minute // one call of one plugin, within the caller's deadline
	pipeWait      = time.Second     // for a child of a plugin that ended and left its pipes open
	builtInPrefix = "built-in:"     // what FindInPath returns of a plugin in this process
)

func isBuiltIn(pluginType string) bool {
	return pluginType == bridge.Type || pluginType == loopbackType
}

// stateEnv tells whose a plugin is that runs on when its daemon has died: the daemon's Config.StateDir.
const stateEnv = "GANTRY_CNI_STATE"

// plugins runs plugins for libcni: built-in ones in this process, others as programs.
type plugins struct {
	bridge   *bridge.Plugin
	state    string // Config.StateDir
	versions versions
	version.PluginDecoder
}

var _ invoke.Exec = (*plugins)(nil)

// FindInPath finds the program of a plugin type.
func (p *plugins) FindInPath(plugin string, dirs []string) (string, error) {
	if isBuiltIn(plugin) {
		return builtInPrefix + plugin, nil
	}
	if err := checkType(plugin); err != nil {
		return "", err
	}
	unusable := ""
	for _, dir := range dirs {
		path := filepath.Join(dir, plugin)
		info, err := os.Stat(path)
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
		if err == nil && unusable == "" {
			unusable = fmt.Sprintf(" (%s is no executable file: %s)", path, info.Mode())
		}
	}
	return "", fmt.Errorf("CNI plugin %s is not in %s, install it there%s: %w", plugin, strings.Join(dirs, ", "), unusable, errdefs.ErrNotFound)
}

// ExecPlugin is one call of one plugin. It ends with ctx, and nothing that it started in its process group outlives
// it then.
func (p *plugins) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	if name, ok := strings.CutPrefix(path, builtInPrefix); ok {
		return p.runBuiltIn(ctx, name, stdin, environ)
	}
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		out, err := p.runProgram(ctx, path, stdin, environ)
		if !errors.Is(err, syscall.ETXTBSY) || wait > time.Second { // being installed at this moment
			return out, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(wait):
		}
	}
}

func (p *plugins) runBuiltIn(ctx context.Context, name string, stdin []byte, environ []string) ([]byte, error) {
	args := bridge.Args{Command: env(environ, "CNI_COMMAND"), ContainerID: env(environ, "CNI_CONTAINERID"),
		NetNS: env(environ, "CNI_NETNS"), IfName: env(environ, "CNI_IFNAME"), Pod: podName(env(environ, "CNI_ARGS")), Stdin: stdin}
	if name == bridge.Type {
		return p.bridge.Run(ctx, args)
	}
	switch args.Command {
	case "ADD":
		if err := bridge.LoopbackUp(args.NetNS); err != nil {
			return nil, err
		}
		return passOn(stdin)
	case "VERSION":
		return json.Marshal(version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0"))
	}
	return nil, nil // the namespace takes its loopback with it
}

// podName is namespace/name of the pod that CNI_ARGS tell of, if they do.
func podName(cniArgs string) string {
	args := strings.Split(cniArgs, ";")
	if name := env(args, "K8S_POD_NAME"); name != "" {
		return env(args, "K8S_POD_NAMESPACE") + "/" + name
	}
	return ""
}

// passOn is the result of a plugin that adds nothing: that of the plugins before it.
func passOn(stdin []byte) ([]byte, error) {
	var conf struct {
		CNIVersion string          `json:"cniVersion"`
		PrevResult json.RawMessage `json:"prevResult"`
	}
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return nil, fmt.Errorf("parsing configuration of loopback: %w", err)
	}
	if len(conf.PrevResult) > 0 {
		return conf.PrevResult, nil
	}
	return json.Marshal(map[string]string{"cniVersion": conf.CNIVersion})
}

// env is the last value of a variable: libcni appends its own to this process's.
func env(environ []string, name string) string {
	for _, kv := range slices.Backward(environ) {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

func (p *plugins) runProgram(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, path)
	// Nothing of the daemon's environment: it may hold proxies with passwords.
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, name := range []string{"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"} {
		cmd.Env = append(cmd.Env, name+"="+env(environ, name))
	}
	cmd.Env = append(cmd.Env, stateEnv+"="+p.state)
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(stdin)
	stdout, stderr := &capped{full: cancel, what: "stdout"}, &capped{full: cancel, what: "stderr"}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = pipeWait

	what := fmt.Sprintf("CNI plugin %s %s", filepath.Base(path), env(environ, "CNI_COMMAND"))
	err := cmd.Run()
	if cause := context.Cause(ctx); cause != nil && err != nil {
		return nil, fmt.Errorf("%s was killed: %w", what, cause)
	}
	if errors.Is(err, exec.ErrWaitDelay) { // it ended well; a child that it left has the pipe
		klog.FromContext(ctx).Info("CNI plugin left a process behind that holds its output open", "plugin", path)
		err = nil
	}
	if err != nil {
		return nil, pluginError(what, err, stdout.buf.Bytes(), stderr.buf.Bytes())
	}
	if err := checkOutput(env(environ, "CNI_COMMAND"), stdin, stdout.buf.Bytes()); err != nil {
		return nil, fmt.Errorf("%s ended well, but %w", what, err)
	}
	klog.FromContext(ctx).V(4).Info("CNI plugin ended", "plugin", path, "command", env(environ, "CNI_COMMAND"), "stderr", shown(stderr.buf.Bytes()))
	return stdout.buf.Bytes(), nil
}
