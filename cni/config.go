package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

// parseSingle reads the form with one plugin and makes a list of it.
func parseSingle(data []byte) (*libcni.NetworkConfigList, error) {
	single, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	list, err := json.Marshal(map[string]any{"cniVersion": single.Network.CNIVersion, "name": single.Network.Name,
		"plugins": []json.RawMessage{data}})
	if err != nil {
		return nil, err
	}
	return parseList(list)
}

// parseList reads and checks a network configuration list. What it returns can be run, and parsed again from its
// Bytes.
func parseList(data []byte) (*libcni.NetworkConfigList, error) {
	list, err := parseHead(data)
	if err != nil {
		return nil, err
	}
	if list.CNIVersion == "" {
		list.CNIVersion = "0.1.0" // the specification's default
	}
	if ok, err := version.GreaterThanOrEqualTo(version.Current(), list.CNIVersion); err != nil || !ok {
		return nil, fmt.Errorf("cniVersion %q is not known, the newest is %s", list.CNIVersion, version.Current())
	}
	if len(list.Plugins) == 0 {
		return nil, errors.New("list has no plugins")
	}
	for i, p := range list.Plugins {
		if err := checkType(p.Network.Type); err != nil {
			return nil, fmt.Errorf("plugin %d: %w", i, err)
		}
		if p.Network.Type == bridge.Type {
			if i > 0 {
				return nil, fmt.Errorf("plugin %d: %s must be the first of its list", i, bridge.Type)
			}
			if _, err := parseBridge(list); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

// parseBridge reads the configuration of gantry-bridge, which is the first plugin of the list.
func parseBridge(list *libcni.NetworkConfigList) (*bridge.Config, error) {
	named, err := libcni.InjectConf(list.Plugins[0], map[string]any{"name": list.Name})
	if err != nil {
		return nil, err
	}
	return bridge.Parse(named.Bytes)
}

// parseHead reads a list that may lack plugins. Its name can be a file's.
func parseHead(data []byte) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil || len(list.Name) > 128 {
		return nil, fmt.Errorf("network name %q is empty, too long or has other characters than letters, digits, _ . -", list.Name)
	}
	return list, nil
}

// checkType refuses plugin types that are paths (CVE-2021-20206).
func checkType(name string) error {
	if name == "" || name == "." || strings.ContainsAny(name, "/\x00") || strings.Contains(name, "..") {
		return fmt.Errorf("plugin type %q is not the name of a program: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}

// builtIn tells whether every plugin of the list runs in this process.
func builtIn(list *libcni.NetworkConfigList) bool {
	return !slices.ContainsFunc(list.Plugins, func(p *libcni.PluginConfig) bool { return !isBuiltIn(p.Network.Type) })
}

// has tells whether a plugin of the list serves a capability.
func has(list *libcni.NetworkConfigList, capability string) bool {
	return slices.ContainsFunc(list.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Capabilities[capability] })
}
