package cni

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// maxSoFar bounds the result of an unfinished chain in a record. A result has some hundred bytes.
const maxSoFar = 64 << 10

// addChain runs the chain's ADD. What it has come to after each plugin is recorded, until the chain's end, which libcni
// keeps: a plugin's DEL may need it to find what its ADD made (the firewall plugin's rules have addresses).
func (n *Networks) addChain(ctx context.Context, pod string, a *attachment, netns string) (types.Result, error) {
	if builtIn(a.list) {
		return n.within.AddNetworkList(ctx, a.list, a.runtimeConf(pod, netns))
	}
	left := len(a.list.Plugins)
	chain := libcni.NewCNIConfigWithCacheDir(n.cfg.BinDirs, n.cfg.StateDir, recording{n.exec, func(result json.RawMessage) error {
		if left--; left == 0 || len(result) > maxSoFar {
			return nil
		}
		next := *a
		next.SoFar = result
		return n.records.put(pod, &next)
	}})
	return chain.AddNetworkList(ctx, a.list, a.runtimeConf(pod, netns))
}

// chain runs a list with the cache that is its. A new file in StateDir costs more than all else that Gantry does for a
// pod, where the disk is busy.
func (n *Networks) chain(list *libcni.NetworkConfigList) *libcni.CNIConfig {
	if builtIn(list) {
		return n.within
	}
	return n.libcni
}

// recording tells the results of plugins.
type recording struct {
	*plugins
	ran func(result json.RawMessage) error
}

func (r recording) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	out, err := r.plugins.ExecPlugin(ctx, path, stdin, environ)
	if err != nil {
		return nil, err
	}
	result, err := readResult(stdin, out)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(result) // with its version, which the plugin may have left out
	if err != nil {
		return nil, fmt.Errorf("result of a plugin: %w", err)
	}
	return out, r.ran(data)
}

// delChain runs the chain's DEL. A chain that did not come to its end has what it came to as prevResult; libcni sets
// that of another, over it. Before version 0.4.0 DEL has none.
func (n *Networks) delChain(ctx context.Context, pod string, a *attachment, netns string) error {
	list := a.list
	if ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0"); err == nil && ok && len(a.SoFar) > 0 {
		undo := *list
		undo.Plugins = nil
		for _, p := range list.Plugins {
			p, err := libcni.InjectConf(p, map[string]any{"prevResult": a.SoFar})
			if err != nil {
				return err
			}
			undo.Plugins = append(undo.Plugins, p)
		}
		list = &undo
	}
	return n.chain(list).DelNetworkList(ctx, list, a.runtimeConf(pod, netns))
}
