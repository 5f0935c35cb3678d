package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/test/bench/containerd"
	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// cniPlugins is where Debian's package containernetworking-plugins has its programs.
const cniPlugins = "/usr/lib/cni"

const (
	peerBridge = "peer0"
	peerState  = "/run/containerd" // a tmpfs, as on nodes and as gantry's
)

// peerNetwork does what gantry-bridge does: bridge, addresses, masquerade, host ports.
const peerNetwork = `{"cniVersion": "1.0.0", "name": "peer", "plugins": [
	{"type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": true, "hairpinMode": true,
	 "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.215.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
	{"type": "portmap", "capabilities": {"portMappings": true}}]}`

// startContainerd starts the peer with everything of it in a temporary folder.
func startContainerd(ctx context.Context, path string, registry *images.Registry) (r *criRuntime, end func() error, err error) {
	var undo []func() error
	end = func() error {
		var errs []error
		for i := len(undo) - 1; i >= 0; i-- {
			errs = append(errs, undo[i]())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, end())
		}
	}()
	dir, err := os.MkdirTemp("", "peer-")
	if err != nil {
		return nil, nil, err
	}
	undo = append(undo, func() error { return os.RemoveAll(dir) })
	for _, shared := range []string{peerState, "/var/lib/cni"} { // where also its shims' sockets are; libcni's cache
		remove, err := coverDir(shared)
		if err != nil {
			return nil, nil, err
		}
		undo = append(undo, remove)
	}
	runc, err := harness.FindRunc()
	if err != nil {
		return nil, nil, err
	}
	network := filepath.Join(dir, "net.d")
	if err := os.Mkdir(network, 0o755); err != nil {
		return nil, nil, err
	}
	if err := os.WriteFile(filepath.Join(network, "peer.conflist"), fmt.Appendf(nil, peerNetwork, peerBridge, filepath.Join(dir, "leases")), 0o600); err != nil {
		return nil, nil, err
	}
	tables := fmt.Sprintf(`[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "registry.k8s.io/pause:3.10"
[plugins."io.containerd.cri.v1.runtime"]
netns_mounts_under_state_dir = true
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = [%q]
conf_dir = %q
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = %q
[plugins."io.containerd.nri.v1.nri"]
socket_path = %q
`, cniPlugins, network, runc, filepath.Join(dir, "nri.sock"))
	undo = append(undo, forgetNetwork)
	d, err := containerd.Start(ctx, containerd.Config{Path: path, Dir: dir, State: peerState, Registry: registry,
		Tables: func(string) string { return tables }})
	if err != nil {
		return nil, nil, err
	}
	undo = append(undo, reap, d.Close)
	return &criRuntime{name: d.Name, processes: []string{dir, "containerd-shim"},
		end: func(context.Context) error { return d.End(unix.SIGTERM) }, kill: func() error { return d.End(unix.SIGKILL) }, restart: d.Start,
		oci: []string{runc, "--root", filepath.Join(peerState, "runc/k8s.io")}, cri: d.Runtime, images: d.Images}, end, nil
}

// reap collects its shims, which fell to this subreaper.
func reap() error {
	harness.Reap()
	return nil
}

// forgetNetwork removes what its plugins leave: the bridge, and the tables of iptables. The network namespace is the
// bench's own (harness.Isolate), and the gantry beside has no pods by then.
func forgetNetwork() error {
	err := harness.FlushRuleset()
	if _, missing := net.InterfaceByName(peerBridge); missing == nil { // else no pod was made
		err = errors.Join(err, harness.DeleteLink(peerBridge))
	}
	return err
}

// coverDir mounts an empty file system over a directory, which it makes if there is none.
func coverDir(path string) (undo func() error, err error) {
	err = os.Mkdir(path, 0o755)
	made := err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "mode=755"); err != nil {
		return nil, fmt.Errorf("covering %s: %w", path, err)
	}
	return func() error {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if made {
			err = errors.Join(err, os.Remove(path))
		}
		return err
	}, nil
}
