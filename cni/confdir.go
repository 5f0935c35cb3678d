package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

// conf is the configuration in force. It is immutable.
type conf struct {
	file string                    // "" = the default network
	list *libcni.NetworkConfigList // nil = the default network, or none when err is set
	err  error                     // why no pod can be attached
}

func (c *conf) equal(other *conf) bool {
	if other == nil || c.file != other.file || (c.list == nil) != (other.list == nil) || (c.err == nil) != (other.err == nil) {
		return false
	}
	return (c.err == nil || c.err.Error() == other.err.Error()) && (c.list == nil || string(c.list.Bytes) == string(other.list.Bytes))
}

// confReader is what reload remembers.
type confReader struct {
	logged map[string]string // file -> reason logged last
	torn   time.Time         // when the file in force was first found half-written; zero = it is whole
}

// reload reads the configuration directory and returns when to look again at the latest. Each reason why a file is
// passed over is logged once.
func (n *Networks) reload(ctx context.Context) (again time.Duration) {
	logger := klog.FromContext(ctx)
	old := n.conf.Load()
	c, bad := readConfDir(n.cfg.ConfDir)
	// The file in force is being written: its pods must not come to the network of the next file meanwhile.
	if old != nil && old.list != nil && slices.ContainsFunc(bad, func(b badFile) bool { return b.file == old.file && errors.Is(b.err, errTorn) }) {
		if n.reader.torn.IsZero() {
			n.reader.torn = time.Now()
		}
		if left := n.pace.writing - time.Since(n.reader.torn); left > 0 {
			return left
		}
	}
	n.reader.torn = time.Time{}
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
		if n.reader.logged[b.file] != b.err.Error() {
			logger.Error(b.err, "Passed over a CNI configuration file", "path", b.file)
		}
	}
	n.reader.logged = logged
	if c.equal(old) {
		return n.pace.look
	}
	n.conf.Store(c)
	signal(n.reloaded)
	switch {
	case c.err != nil:
		logger.Info("Network is not ready", "reason", c.err.Error())
	case c.list == nil:
		logger.Info("Pods get the default network", "bridge", n.cfg.Bridge)
	default:
		logger.Info("Pods get the network of the configuration", "network", c.list.Name, "path", c.file, "cniVersion", c.list.CNIVersion)
		if first := c.list.Plugins[0]; first.Network.Type == bridge.Type {
			if err := bridge.CheckKeys(first.Bytes); err != nil {
				logger.Info("Configuration has a key that gantry-bridge does not know and ignores", "reason", err.Error(), "path", c.file)
			}
		}
	}
	return n.pace.look
}

// maxBad bounds how many files that are not valid are passed over, and logged.
const maxBad = 100

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
			if bad = append(bad, badFile{path, err}); len(bad) == maxBad {
				return nil, append(bad, badFile{dir, fmt.Errorf("%d files in it are not valid, those behind %s are not looked at: remove them", maxBad, e.Name())})
			}
			continue
		}
		return &conf{file: path, list: list}, bad
	}
	return nil, bad
}

// errTorn is the error of a file that ends too early or is no JSON for other reasons.
var errTorn = errors.New("no JSON, or not written to its end yet")

func readConf(path string) (*libcni.NetworkConfigList, error) {
	data, err := readTrusted(path)
	if err != nil {
		return nil, err
	}
	if !json.Valid(data) {
		return nil, fmt.Errorf("%w: %w", errTorn, json.Unmarshal(data, new(any)))
	}
	if filepath.Ext(path) != ".conflist" {
		return parseSingle(data)
	}
	if data, err = inline(filepath.Dir(path), data); err != nil {
		return nil, err
	}
	return parseList(data)
}

// inline makes a list that says all by itself, for the pods that are attached with it: plugins from the folder of the
// network's name (CNI 1.1's loadOnlyInlinedPlugins = false) are put into it, and of several cniVersions the chosen one,
// which another version of Gantry might choose otherwise.
func inline(dir string, data []byte) ([]byte, error) {
	list, err := parseHead(data)
	if err != nil {
		return nil, err
	}
	var plugins []json.RawMessage
	size := len(data)
	if !list.LoadOnlyInlinedPlugins {
		files, err := libcni.ConfFiles(filepath.Join(dir, list.Name), []string{".conf"})
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			plugin, err := readTrusted(file)
			if err == nil && !json.Valid(plugin) {
				err = errTorn
			}
			if err != nil {
				return nil, fmt.Errorf("plugin %s: %w", file, err)
			}
			if size += len(plugin); size > maxFile { // every pod's record has it
				return nil, fmt.Errorf("list has more than %d bytes with its plugins up to %s", maxFile, file)
			}
			plugins = append(plugins, plugin)
		}
	}
	raw := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, err
	}
	if plugins == nil && raw["cniVersions"] == nil {
		return data, nil
	}
	if raw["cniVersions"] != nil && list.CNIVersion == "" {
		return nil, fmt.Errorf("none of cniVersions %s is known, the newest is %s", raw["cniVersions"], version.Current())
	}
	var own []json.RawMessage
	if raw["plugins"] != nil {
		if err := json.Unmarshal(raw["plugins"], &own); err != nil {
			return nil, err
		}
	}
	delete(raw, "cniVersions")
	whole := map[string]any{}
	for key, value := range raw {
		whole[key] = value
	}
	if list.CNIVersion != "" {
		whole["cniVersion"] = list.CNIVersion
	}
	whole["plugins"], whole["loadOnlyInlinedPlugins"] = append(own, plugins...), true
	return json.Marshal(whole)
}
