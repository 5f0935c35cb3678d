package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/cmd/gantry/config"
	"github.com/gantry-cri/gantry/cni"
)

const (
	// networkProbe is the argument with which the doctor calls itself in a network namespace of its own.
	networkProbe   = "probe-network"
	networkTimeout = 30 * time.Second
)

// checkNetwork says which network pods get, and tries it if it is the built-in one.
func checkNetwork(ctx context.Context, r *report, cfg config.Config, dir string) {
	files, err := cniFiles(cfg.CNI.ConfDir)
	switch {
	case err != nil:
		r.fail("network", fmt.Sprintf("%v; make it readable or name another --cni-conf-dir", err))
	case len(files) > 0:
		checkCNI(ctx, r, cfg, files, dir)
	case cfg.Network.Default == config.NetworkNone:
		r.fail("network", fmt.Sprintf("no CNI configuration in %s, and network.default is none; install a network or set it to %s", cfg.CNI.ConfDir, config.NetworkBridge))
	default:
		checkSubnets(r, cfg)
		checkForward(r, cfg)
		err := tryNetwork(ctx, cfg, dir)
		r.require("network gantry-bridge", err, "load the modules bridge, veth, nf_tables and nft_masq")
	}
}

// cniFiles are the configurations in a directory, in the order in which they are looked at.
func cniFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries { // sorted by name
		if slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(e.Name())) {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, nil
}

// checkCNI asks the part that will read the files whether it can, and the plugins of the first whether they work.
func checkCNI(ctx context.Context, r *report, cfg config.Config, files []string, dir string) {
	networks, err := cni.Open(ctx, cni.Config{ConfDir: cfg.CNI.ConfDir, BinDirs: cfg.CNI.BinDirs, StateDir: filepath.Join(dir, "cni"), NoDefault: true})
	if err == nil {
		err = errors.Join(networks.Ask(ctx), networks.Close())
	}
	file, types := firstNetwork(files)
	var missing []string
	for _, t := range types {
		if t != "gantry-bridge" && t != "loopback" && !inDirs(t, cfg.CNI.BinDirs) {
			missing = append(missing, t)
		}
	}
	if len(missing) > 0 {
		r.fail("network", fmt.Sprintf("%s needs the plugins %s, which are in none of %s; install them", file, strings.Join(missing, ", "), strings.Join(cfg.CNI.BinDirs, ", ")))
		return
	}
	if err != nil {
		r.fail("network", fmt.Sprintf("%v; correct or remove the file, or see to its plugins", err))
		return
	}
	r.ok("network", fmt.Sprintf("%s with the plugins %s", file, strings.Join(types, ", ")))
	for _, t := range types {
		if v := judge(t, pluginVersion(ctx, t, cfg.CNI.BinDirs)); v.open {
			r.warn("network plugin "+t, v.detail)
		}
	}
	if n, err := readNumber("/proc/sys/net/ipv4/ip_forward"); err != nil || n == 0 {
		r.warn("ip_forward", "off; pods may not reach beyond this node (sysctl net.ipv4.ip_forward=1)")
	}
}

// firstNetwork is the first configuration that can be read, and the types of its plugins.
func firstNetwork(files []string) (file string, types []string) {
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if types := pluginTypes(data); len(types) > 0 {
			return f, types
		}
	}
	return files[0], nil
}

// pluginTypes are the types that a CNI configuration, or a list of such, names.
func pluginTypes(data []byte) []string {
	var conf struct {
		Type    string
		Plugins []struct{ Type string }
	}
	if json.Unmarshal(data, &conf) != nil {
		return nil
	}
	var types []string
	for _, t := range append(conf.Plugins, struct{ Type string }{conf.Type}) {
		if t.Type != "" {
			types = append(types, t.Type)
		}
	}
	return types
}

// checkSubnets looks for addresses of the node that pods would get too.
func checkSubnets(r *report, cfg config.Config) {
	links, err := net.Interfaces()
	if err != nil {
		r.warn("subnets", err.Error())
		return
	}
	for _, link := range links {
		addrs, err := link.Addrs()
		if err != nil || link.Name == cfg.Network.Bridge {
			continue
		}
		for _, a := range addrs {
			have, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue
			}
			for _, p := range cfg.Network.Subnets {
				if p.Overlaps(have) {
					r.warn("subnets", fmt.Sprintf("%v for pods overlaps with %v of %s; set network.subnets to addresses that nobody uses", p, have, link.Name))
				}
			}
		}
	}
}

// tryNetwork connects a pod by the built-in network, in another process in a
// network namespace of its own: bridge, rules and all are gone with it.
func tryNetwork(ctx context.Context, cfg config.Config, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	state := filepath.Join(dir, "network")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return err
	}
	args, err := json.Marshal(cfg.Network.Subnets)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(state, "subnets"), args, 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, "doctor", networkProbe, state)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil && len(out) > 0 {
		return fmt.Errorf("%s", out[:min(len(out), 2048)])
	}
	return err
}

// runNetworkProbe is the other process.
func runNetworkProbe(ctx context.Context, dir string, stderr io.Writer) int {
	if err := startLogging(0, io.Discard); err != nil {
		fmt.Fprintln(stderr, err)
		return exitError
	}
	if err := probeNetwork(ctx, dir); err != nil {
		fmt.Fprint(stderr, err)
		return exitError
	}
	return exitOK
}

func probeNetwork(ctx context.Context, dir string) (err error) {
	// Called by hand it would be the node's own network that is changed.
	if same, err := sameNetwork(os.Getpid(), os.Getppid()); err != nil || same {
		return errors.Join(errors.New("not in a network namespace of its own"), err)
	}
	var subnets []netip.Prefix
	data, err := os.ReadFile(filepath.Join(dir, "subnets"))
	if err == nil {
		err = json.Unmarshal(data, &subnets)
	}
	if err != nil {
		return err
	}
	networks, err := cni.Open(ctx, cni.Config{ConfDir: filepath.Join(dir, "none"), StateDir: filepath.Join(dir, "state"), Subnets: subnets})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, networks.Close()) }()
	pod, done := make(chan string), make(chan struct{})
	defer close(done)
	go holdNamespace(pod, done)
	ns := <-pod
	if ns == "" {
		return errors.New("a network namespace cannot be made")
	}
	p := cni.Pod{
		ID: strings.Repeat("d", 64), Name: "probe", Namespace: "doctor", UID: "probe", NetNS: ns,
		PortMappings: []cni.PortMapping{{Protocol: "tcp", ContainerPort: 80, HostPort: 8080}},
	}
	if _, err := networks.Attach(ctx, p); err != nil {
		return err
	}
	return networks.Detach(ctx, p)
}

// holdNamespace makes a network namespace, tells its path ("" if it cannot),
// and keeps it until done. Its thread ends with it.
func holdNamespace(pod chan<- string, done <-chan struct{}) {
	runtime.LockOSThread()
	path := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
	if unix.Unshare(unix.CLONE_NEWNET) != nil {
		path = ""
	}
	pod <- path
	<-done
}

func sameNetwork(a, b int) (bool, error) {
	nsA, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", a))
	if err != nil {
		return false, err
	}
	nsB, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", b))
	return nsA == nsB, err
}
