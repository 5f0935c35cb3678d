package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

// conf is the configuration in force. It is immutable.
type conf struct {
	file string                    // "" = the default network
	list *libcni.NetworkConfigList // nil = the default network, or none when err is set
	err  error                     // why no pod can be attached
}

// reload reads the configuration directory. Each reason why a file is passed over is logged once.
func (n *Networks) reload(ctx context.Context) {
	logger := klog.FromContext(ctx)
	c, bad := readConfDir(n.cfg.ConfDir)
	if c == nil && len(bad) == 0 && n.cfg.NoDefault {
		c = &conf{err: fmt.Errorf("no CNI configuration in %s and the default network is turned off: %w", n.cfg.ConfDir, errdefs.ErrUnavailable)}
	} else if c == nil && len(bad) == 0 {
		c = &conf{}
	} else if c == nil {
		first := bad[0] // whatever kind of error that is, it is no pod's
		c = &conf{err: fmt.Errorf("no valid CNI configuration, %s: %v: %w", first.file, first.err, errdefs.ErrUnavailable)}
	}
	logged := map[string]string{}
	for _, b := range bad {
		logged[b.file] = b.err.Error()
		if n.logged[b.file] != b.err.Error() {
			logger.Error(b.err, "Passed over a CNI configuration file", "path", b.file)
		}
	}
	n.logged = logged
	old := n.conf.Swap(c)
	if old != nil && old.file == c.file && (old.list == nil) == (c.list == nil) && (c.list == nil || string(old.list.Bytes) == string(c.list.Bytes)) {
		return
	}
	switch {
	case c.err != nil:
		logger.Info("Network is not ready", "reason", c.err.Error())
	case c.list == nil:
		logger.Info("Network is ready with the default network", "bridge", n.cfg.Bridge)
	default:
		logger.Info("Network is ready", "network", c.list.Name, "path", c.file)
		if first := c.list.Plugins[0]; first.Network.Type == bridge.Type {
			if err := bridge.CheckKeys(first.Bytes); err != nil {
				logger.Info("Configuration has a key that gantry-bridge does not know and ignores", "reason", err.Error(), "path", c.file)
			}
		}
	}
}

type badFile struct {
	file string
	err  error
}

// readConfDir returns the first valid configuration by name, nil when there is none, and the files before it that are
// not valid. An absent directory is an empty one.
func readConfDir(dir string) (*conf, []badFile) {
	entries, err := os.ReadDir(dir) // sorted by name
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []badFile{{dir, err}}
	}
	var bad []badFile
	for _, e := range entries {
		if e.IsDir() || !slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(e.Name())) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		list, err := readConf(path)
		if err != nil {
			bad = append(bad, badFile{path, err})
			continue
		}
		return &conf{file: path, list: list}, bad
	}
	return nil, bad
}

func readConf(path string) (*libcni.NetworkConfigList, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	// Who can write the file runs programs as root.
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, err
	}
	if st.Mode&0o002 != 0 || (st.Uid != 0 && int(st.Uid) != os.Geteuid()) {
		return nil, fmt.Errorf("file can be written by others (owner %d, mode %04o), chown it to root and chmod it to 0644", st.Uid, st.Mode&0o7777)
	}
	if filepath.Ext(path) == ".conflist" {
		return parseList(data)
	}
	return parseSingle(data)
}

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
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil || len(list.Name) > 128 {
		return nil, fmt.Errorf("network name %q is empty, too long or has other characters than letters, digits, _ . -", list.Name)
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
			named, err := libcni.InjectConf(p, map[string]any{"name": list.Name})
			if err != nil {
				return nil, err
			}
			if _, err := bridge.Parse(named.Bytes); err != nil {
				return nil, err
			}
		}
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

// defaultList is the list that serves when the directory is empty.
func defaultList(bridgeName string, subnets []netip.Prefix) (*libcni.NetworkConfigList, error) {
	data, err := json.Marshal(map[string]any{
		"cniVersion": version.Current(), "name": "gantry",
		"plugins": []any{map[string]any{
			"type": bridge.Type, "bridge": bridgeName, "isGateway": true, "ipMasq": true, "hairpinMode": true,
			"subnets": subnets, "capabilities": map[string]bool{"portMappings": true, "bandwidth": true},
		}},
	})
	if err != nil {
		return nil, err
	}
	return parseList(data)
}
