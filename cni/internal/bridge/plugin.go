package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni/internal/ipam"
	"github.com/gantry-cri/gantry/cni/internal/nft"
)

// Type is the plugin's type in a CNI configuration.
const Type = "gantry-bridge"

// Plugin is gantry-bridge with the state of all its networks. It is made once per daemon; its methods may be called
// concurrently, for different pods.
type Plugin struct {
	dir           string
	defaultBridge string
	table         *nft.Table
	host          *rtnl // the node's network namespace
	sysctls       podSysctls
	ifbPrefix     string
	ifbs          reaper // of limits of pods that are gone
	group         uint32 // of the bridges that were made here

	allocating sync.Mutex

	mu       sync.Mutex
	networks map[string]*network
}

// Args are the arguments of one call, as the CNI specification names them.
type Args struct {
	Command, ContainerID, NetNS, IfName string
	Pod                                 string // namespace/name, for errors; "" = not known
	Stdin                               []byte // the configuration
}

// Open reads the state of all networks from dir. The kernel is not touched before the first use.
func Open(ctx context.Context, dir, defaultBridge, table string) (*Plugin, error) {
	p := &Plugin{dir: dir, defaultBridge: defaultBridge, networks: map[string]*network{}}
	p.ifbPrefix, p.ifbs.group, p.group = instance(table)
	root := filepath.Join(dir, "networks")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("making network directory: %w", err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("reading networks: %w", err)
	}
	known := map[string]nft.Network{}
	for _, e := range entries {
		if utils.ValidateNetworkName(e.Name()) != nil || !e.IsDir() {
			continue
		}
		n, err := openNetwork(ctx, e.Name(), filepath.Join(root, e.Name()))
		if err != nil {
			return nil, err
		}
		p.networks[n.name] = n
		if n.rec.Bridge != "" {
			known[n.name] = n.rec.table()
		}
	}
	if p.table, err = nft.Open(ctx, table, filepath.Join(dir, "ports"), known); err != nil {
		return nil, err
	}
	if p.host, err = newRTNL(); err != nil {
		return nil, err
	}
	return p, nil
}

// Close closes sockets and journals. Bridges, veths and the table stay.
func (p *Plugin) Close() error {
	p.ifbs.close()
	p.sysctls.close()
	errs := []error{p.host.close(), p.table.Close()}
	for _, n := range p.all() {
		errs = append(errs, n.pool.Close())
	}
	return errors.Join(errs...)
}

// Run is one call of the plugin; what it returns is what a plugin prints.
func (p *Plugin) Run(ctx context.Context, args Args) ([]byte, error) {
	switch args.Command {
	case "ADD":
		result, err := p.add(ctx, args)
		if err != nil {
			return nil, err
		}
		return json.Marshal(result)
	case "DEL":
		return nil, p.del(ctx, args)
	case "CHECK":
		return nil, p.check(args)
	case "VERSION":
		return json.Marshal(version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0"))
	case "STATUS":
		return nil, p.status(ctx)
	case "GC": // Sweep does it for all networks at once
		return nil, nil
	}
	return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "unknown CNI_COMMAND "+args.Command, "")
}

// undo is what add has done so far, to be taken back in reverse order.
type undo []func() error

func (u undo) run() error {
	var errs []error
	for i := len(u) - 1; i >= 0; i-- {
		errs = append(errs, u[i]())
	}
	return errors.Join(errs...)
}

func (p *Plugin) add(ctx context.Context, args Args) (types.Result, error) {
	cfg, err := p.parse(args.Stdin)
	if err != nil {
		return nil, err
	}
	ns, err := openNamespace(args.NetNS)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	n, err := p.network(ctx, cfg.Network)
	if err != nil {
		return nil, err
	}
	br, err := n.ensure(p, cfg)
	if err != nil {
		return nil, err
	}
	if cfg.MAC != nil && bytes.Equal(cfg.MAC, br.mac) {
		return nil, fmt.Errorf("mac %s is that of bridge %s: %w", cfg.MAC, cfg.Bridge, errdefs.ErrInvalidArgument)
	}

	var done undo
	addrs, err := p.allocate(n, args.ContainerID, cfg.Ranges)
	if err == nil {
		done = append(done, func() error { return n.pool.Release(args.ContainerID) })
		var ports []nft.Port
		if ports, err = cfg.hostPorts(addrs); err == nil {
			err = p.table.Publish(ctx, args.ContainerID, args.Pod, ports)
		}
	}
	if err == nil {
		done = append(done, func() error { return p.table.Unpublish(ctx, args.ContainerID) })
		err = ctx.Err()
	}
	if err == nil && cfg.Bandwidth.EgressRate > 0 {
		err = p.ifbs.wait(ctx, p.ifbLink(args.ContainerID))
	}
	if err == nil {
		if err = p.link(ns, args, cfg, br, addrs); err != nil && p.isGone(br) { // somebody deleted the bridge
			n.forget()
			if br, err = n.ensure(p, cfg); err == nil {
				err = p.link(ns, args, cfg, br, addrs)
			}
		}
	}
	if err != nil {
		return nil, errors.Join(err, done.run())
	}
	return cfg.result(args, br, addrs).GetAsVersion(cfg.CNIVersion)
}

// parse reads the configuration of an ADD.
func (p *Plugin) parse(stdin []byte) (*Config, error) {
	cfg, err := Parse(stdin)
	if err != nil {
		return nil, err
	}
	if cfg.Bridge == "" {
		cfg.Bridge = p.defaultBridge
	}
	if len(cfg.Ranges) == 0 {
		return nil, fmt.Errorf("network %s has the node's pod CIDR for its addresses, which is not known yet: %w", cfg.Network, errdefs.ErrUnavailable)
	}
	return cfg, nil
}

// link makes the pod's veth. It leaves no link when it fails.
func (p *Plugin) link(ns *os.File, args Args, cfg *Config, br bridgeLink, addrs []ipam.Address) error {
	v := veth{host: HostLink(args.ContainerID), pod: args.IfName, mac: cfg.podMAC(addrs),
		ns: int(ns.Fd()), mtu: br.mtu, bridge: br.index, hairpin: cfg.Hairpin, announce: cfg.Announce, sysctls: &p.sysctls}
	if cfg.Bandwidth != (Bandwidth{}) {
		v.shape = &shaping{cfg.Bandwidth, p.ifbLink(args.ContainerID)}
	}
	if err := v.create(p.host); err != nil {
		return fmt.Errorf("making link %s on bridge %s: %w", v.host, cfg.Bridge, err)
	}
	err := v.configure(addrs, cfg.podRoutes(addrs))
	if err == nil && cfg.Announce {
		err = learn(p.host, br.index, addrs, v.mac)
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("configuring %s of the pod: %w", v.pod, err), p.RemoveLink(args.ContainerID))
		if cfg.Bandwidth.EgressRate > 0 {
			err = errors.Join(err, deleteLink(p.host, v.shape.ifb))
		}
		return err
	}
	return nil
}

func (p *Plugin) isGone(br bridgeLink) bool {
	_, err := getLinkByIndex(p.host, br.index)
	return errors.Is(err, errdefs.ErrNotFound)
}

func (c *Config) result(args Args, br bridgeLink, addrs []ipam.Address) *types100.Result {
	result := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Interfaces: []*types100.Interface{
		{Name: c.Bridge, Mac: br.mac.String()},
		{Name: HostLink(args.ContainerID)},
		{Name: args.IfName, Mac: c.podMAC(addrs).String(), Sandbox: args.NetNS},
	}}
	for _, a := range addrs {
		result.IPs = append(result.IPs, &types100.IPConfig{Interface: types100.Int(2), Address: ipNet(a.Prefix), Gateway: a.Gateway.AsSlice()})
	}
	for _, r := range c.podRoutes(addrs) {
		result.Routes = append(result.Routes, r.result())
	}
	return result
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// del takes everything of the pod away but the veth (see the package comment). It needs nothing of the configuration
// but the network's name, and neither the namespace nor the veth to be there.
func (p *Plugin) del(ctx context.Context, args Args) error {
	var conf struct {
		Name    string `json:"name"`
		Runtime struct {
			Bandwidth Bandwidth `json:"bandwidth"`
		} `json:"runtimeConfig"`
	}
	if err := json.Unmarshal(args.Stdin, &conf); err != nil {
		return fmt.Errorf("parsing configuration of gantry-bridge: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	err := p.table.Unpublish(ctx, args.ContainerID)
	if disable := disablePort(p.host, HostLink(args.ContainerID)); disable != nil {
		klog.FromContext(ctx).V(4).Info("Delete a link that cannot be disabled", "pod", args.ContainerID, "reason", disable)
		err = errors.Join(err, p.RemoveLink(args.ContainerID))
	}
	if conf.Runtime.Bandwidth.EgressRate > 0 {
		p.ifbs.add(ctx, p.ifbLink(args.ContainerID))
	}
	if err != nil {
		return err // the addresses stay the pod's while it may still answer on them
	}
	p.mu.Lock()
	n := p.networks[conf.Name]
	p.mu.Unlock()
	if n == nil {
		return nil
	}
	return n.pool.Release(args.ContainerID)
}

// RemoveLink deletes the pod's veth. An absent one is no error.
func (p *Plugin) RemoveLink(pod string) error {
	if err := deleteLink(p.host, HostLink(pod)); err != nil {
		return fmt.Errorf("deleting link %s: %w", HostLink(pod), err)
	}
	return nil
}

// InUse is the number of addresses and host ports that pods hold.
func (p *Plugin) InUse() (addresses, ports int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.networks {
		addresses += n.pool.Len()
	}
	return addresses, p.table.Len()
}
