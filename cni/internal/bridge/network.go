package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni/internal/ipam"
	"github.com/gantry-cri/gantry/cni/internal/journal"
	"github.com/gantry-cri/gantry/cni/internal/nft"
)

// network is one network by its name in the configuration.
type network struct {
	name, dir string
	pool      *ipam.Pool

	mu  sync.Mutex
	rec record
	// ------ not saved ------
	up   *bridgeLink // set once the bridge, the table and the sysctls are as want says
	want ensureKey
}

// record is network.json.
type record struct {
	Bridge     string         `json:"bridge"`
	Made       []string       `json:"made"` // bridges that were made here, to be removed by Teardown
	Subnets    []netip.Prefix `json:"subnets"`
	Masquerade bool           `json:"masquerade"`
	Direct     []netip.Prefix `json:"nonMasqueradeCIDRs"`
}

func (r record) table() nft.Network {
	return nft.Network{Bridge: r.Bridge, Subnets: r.Subnets, Masquerade: r.Masquerade, Direct: r.Direct}
}

// bridgeLink is what a pod's veth needs of its bridge.
type bridgeLink struct {
	index, mtu int
	mac        net.HardwareAddr
}

// ensureKey is what of a configuration concerns the node; a change of it makes ensure work again.
type ensureKey struct {
	bridge, gateways string
	mtu              int
	masquerade       bool
	direct           string
}

func openNetwork(ctx context.Context, name, dir string) (*network, error) {
	n := &network{name: name, dir: dir}
	var err error
	if n.pool, err = ipam.Open(ctx, name, filepath.Join(dir, "leases")); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "network.json")
	_ = os.Remove(path + ".new") // of a crash; the next save makes it anew
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	var data []byte
	damage := errors.New("it is no file")
	if err == nil && info.Mode().IsRegular() {
		data, err = os.ReadFile(path)
		if damage = json.Unmarshal(data, &n.rec); damage == nil {
			damage = n.rec.check()
		}
	}
	if err == nil && damage != nil {
		klog.FromContext(ctx).Error(damage, "Set aside a damaged record of a network", "path", path)
		n.rec = record{}
		err = journal.SetAside(path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading network %s: %w", name, err), n.pool.Close())
	}
	return n, nil
}

// network returns the state of a network, which it makes at its first use.
func (p *Plugin) network(ctx context.Context, name string) (*network, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := p.networks[name]; n != nil {
		return n, nil
	}
	n, err := openNetwork(ctx, name, filepath.Join(p.dir, "networks", name))
	if err == nil {
		p.networks[name] = n
	}
	return n, err
}

// allocate leases addresses that no pod of any network has.
func (p *Plugin) allocate(n *network, pod string, sets [][]ipam.Range) ([]ipam.Address, error) {
	var others []*ipam.Pool
	for _, o := range p.all() {
		if o != n {
			others = append(others, o.pool)
		}
	}
	p.allocating.Lock()
	defer p.allocating.Unlock()
	return n.pool.Allocate(pod, sets, others...)
}

// Leased reports whether a pod has an address of the network.
func (p *Plugin) Leased(ctx context.Context, name, pod string) (bool, error) {
	n, err := p.network(ctx, name)
	if err != nil {
		return false, err
	}
	return n.pool.Leased(pod), nil
}

// Hold leases addresses of the network to a pod that has them.
func (p *Plugin) Hold(ctx context.Context, name, pod string, addrs []netip.Addr) error {
	n, err := p.network(ctx, name)
	if err != nil {
		return err
	}
	return n.pool.Hold(pod, addrs)
}

func (n *network) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.up = nil
}

// ensure makes the node ready for pods of the configuration. The first pod pays for it, the others wait for that.
// The order matters: the record before the bridge, so that Teardown finds it; the table before route_localnet, so
// that 127.0.0.1 is never open to pods.
func (n *network) ensure(p *Plugin, cfg *Config) (bridgeLink, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	key := ensureKey{bridge: cfg.Bridge, gateways: fmt.Sprint(cfg.gateways()), mtu: cfg.MTU, masquerade: cfg.Masquerade, direct: fmt.Sprint(cfg.Direct)}
	if n.up != nil && n.want == key {
		return *n.up, nil
	}
	n.up = nil
	old, err := getLink(p.host, cfg.Bridge)
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return bridgeLink{}, err
	}
	if err == nil && old.kind != "bridge" {
		return bridgeLink{}, fmt.Errorf("interface %s is no bridge, set another name in network %s: %w", cfg.Bridge, n.name, errdefs.ErrFailedPrecondition)
	}
	if err := n.save(cfg, err != nil || p.owns(old, false)); err != nil {
		return bridgeLink{}, err
	}
	if err := p.table.SetNetwork(n.name, n.rec.table()); err != nil {
		return bridgeLink{}, err
	}
	group := uint32(0)
	if slices.Contains(n.rec.Made, cfg.Bridge) {
		group = p.group
	}
	br, err := cfg.makeBridge(p.host, group)
	if err != nil {
		return bridgeLink{}, fmt.Errorf("making bridge %s of network %s: %w", cfg.Bridge, n.name, err)
	}
	n.up, n.want = &br, key
	return br, nil
}

// save records the network as the configuration has it; subnets of pods that were attached earlier stay.
func (n *network) save(cfg *Config, make bool) error {
	rec := record{Bridge: cfg.Bridge, Made: slices.Clone(n.rec.Made), Subnets: slices.Clone(n.rec.Subnets), Masquerade: cfg.Masquerade, Direct: cfg.Direct}
	if make && !slices.Contains(rec.Made, cfg.Bridge) {
		rec.Made = append(rec.Made, cfg.Bridge)
	}
	for _, set := range cfg.Ranges {
		for _, r := range set {
			if !slices.Contains(rec.Subnets, r.Subnet) {
				rec.Subnets = append(rec.Subnets, r.Subnet)
			}
		}
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	path := filepath.Join(n.dir, "network.json")
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("recording network %s: %w", n.name, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("recording network %s: %w", n.name, err)
	}
	n.rec = rec
	return nil
}

// gateways are the bridge's addresses.
func (c *Config) gateways() []netip.Prefix {
	if !c.Gateway {
		return nil
	}
	var all []netip.Prefix
	for _, set := range c.Ranges {
		for _, r := range set {
			if p := netip.PrefixFrom(r.Gateway, r.Subnet.Bits()); !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	return all
}

func (c *Config) has(is4 bool) bool {
	return slices.ContainsFunc(c.Ranges, func(set []ipam.Range) bool { return set[0].Subnet.Addr().Is4() == is4 })
}

// makeBridge makes the bridge or takes the one that is there (of an earlier process, of another that is just as fast,
// or the operator's), and gives it addresses, sysctls and the up flag; the MTU and the group too if the bridge is one that
// was made here, since a bridge whose MTU nobody set takes that of its ports, and 1500 when it has none. Such have a group.
func (c *Config) makeBridge(host *rtnl, group uint32) (bridgeLink, error) {
	mtu := c.MTU
	if mtu == 0 {
		mtu = uplinkMTU(host)
	}
	// A fixed hardware address, else the bridge takes the lowest of its ports' and pods' neighbour entries go stale.
	hw := mac(c.Ranges[0][0].Gateway)
	// No multicast snooping: where nobody queries for listeners the bridge floods all the same, and each port that comes
	// up starts the timers of all ports anew.
	noSnooping := nest(unix.IFLA_INFO_DATA, nl.NewRtAttr(nl.IFLA_BR_MCAST_SNOOPING, nl.Uint8Attr(0)))
	errs, err := host.do(request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, false),
		str(unix.IFLA_IFNAME, c.Bridge), nl.NewRtAttr(unix.IFLA_ADDRESS, hw), u32(unix.IFLA_GROUP, group),
		nest(unix.IFLA_LINKINFO, str(unix.IFLA_INFO_KIND, "bridge"), noSnooping)))
	if err == nil && !errors.Is(errs[0], unix.EEXIST) {
		err = errs[0]
	}
	if err != nil {
		return bridgeLink{}, err
	}
	link, err := getLink(host, c.Bridge)
	if err != nil {
		return bridgeLink{}, err
	}
	if link.kind != "bridge" {
		return bridgeLink{}, fmt.Errorf("interface is of kind %q: %w", link.kind, errdefs.ErrFailedPrecondition)
	}
	if err := c.setSysctls(); err != nil {
		return bridgeLink{}, err
	}
	up := request(unix.RTM_NEWLINK, 0, ifinfo(link.index, true))
	if group != 0 {
		link.mtu = mtu
		up.AddData(u32(unix.IFLA_MTU, uint32(mtu)))
		up.AddData(u32(unix.IFLA_GROUP, group)) // an earlier version has made it without
	}
	reqs := []*nl.NetlinkRequest{up}
	addrs := c.gateways()
	if c.has(false) {
		// The kernel would add it too, and not use it for a second or two, in which it looks for duplicates. Without it
		// the node cannot ask for the hardware address of the pod that a packet from elsewhere is for.
		addrs = append(addrs, linkLocal(link.mac))
	}
	for _, a := range addrs {
		reqs = append(reqs, addAddress(link.index, a))
	}
	if errs, err = host.do(reqs...); err != nil {
		return bridgeLink{}, err
	}
	if errs[0] != nil {
		return bridgeLink{}, fmt.Errorf("setting it up: %w", errs[0])
	}
	for i, err := range errs[1:] {
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return bridgeLink{}, fmt.Errorf("adding address %s: %w", addrs[i], err)
		}
	}
	return bridgeLink{index: link.index, mtu: min(mtuOr(c.MTU, link.mtu), link.mtu), mac: link.mac}, nil
}

func mtuOr(mtu, otherwise int) int {
	if mtu != 0 {
		return mtu
	}
	return otherwise
}

// uplinkMTU is the MTU of the interface that the node leaves by, so that pods on clouds and tunnels send nothing
// that does not fit. It only asks the routing table; nothing is sent.
func uplinkMTU(host *rtnl) int {
	const ethernet = 1500
	for _, dst := range []string{"192.0.2.1", "2001:db8::1"} { // documentation addresses: the default route's
		addr := netip.MustParseAddr(dst)
		m := nl.NewRtMsg()
		m.Family, m.Dst_len = unix.AF_INET, uint8(addr.BitLen())
		if addr.Is6() {
			m.Family = unix.AF_INET6
		}
		msgs, errs, err := host.exchange([]*nl.NetlinkRequest{request(unix.RTM_GETROUTE, 0, m, addrAttr(unix.RTA_DST, addr))})
		if err != nil || errs[0] != nil || len(msgs) == 0 || len(msgs[0].Data) < unix.SizeofRtMsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(msgs[0].Data[unix.SizeofRtMsg:])
		if err != nil {
			continue
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.RTA_OIF {
				if link, err := getLinkByIndex(host, int(nl.NativeEndian().Uint32(a.Value))); err == nil && link.mtu >= 576 {
					return min(link.mtu, ethernet)
				}
			}
		}
	}
	return ethernet
}
