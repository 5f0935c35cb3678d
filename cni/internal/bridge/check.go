package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// status is CNI's STATUS. Whether addresses are left is not looked at: the kubelet would call the whole node not ready
// for it, and its pods would be evicted. The table is made anew when somebody has flushed it, because host ports and
// masquerade of all pods are gone until then.
func (p *Plugin) status(ctx context.Context) error {
	gone, err := p.table.Repair()
	if gone {
		klog.FromContext(ctx).Error(err, "The nftables table was removed by somebody and is made again: pods were without host ports and masquerade")
	}
	if err != nil {
		return types.NewError(types.ErrLimitedConnectivity, "host ports and masquerade cannot be repaired", err.Error())
	}
	return nil
}

// check is CNI's CHECK: the pod's links, addresses, routes and host ports are as its ADD said (prevResult). What it
// finds missing first is the error.
func (p *Plugin) check(args Args) error {
	cfg, result, err := p.parseCheck(args.Stdin)
	if err != nil {
		return err
	}
	if err := p.checkHost(args, cfg); err != nil {
		return err
	}
	ns, err := openNamespace(args.NetNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	addrs := podAddresses(result, args.IfName)
	if err := p.checkLeases(args.ContainerID, cfg.Network, addrs); err != nil {
		return err
	}
	if err := checkPod(ns, args.IfName, addrs, result.Routes); err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	return p.table.Check(args.ContainerID)
}

func (p *Plugin) parseCheck(stdin []byte) (*Config, *types100.Result, error) {
	cfg, err := p.parse(stdin)
	if err != nil {
		return nil, nil, err
	}
	conf := &types.PluginConf{}
	if err := json.Unmarshal(stdin, conf); err != nil {
		return nil, nil, fmt.Errorf("parsing configuration of gantry-bridge: %w", err)
	}
	if err := version.ParsePrevResult(conf); err != nil {
		return nil, nil, err
	}
	if conf.PrevResult == nil {
		return nil, nil, errors.New("the result of the ADD is lost")
	}
	result, err := types100.GetResult(conf.PrevResult)
	return cfg, result, err
}

func (p *Plugin) checkHost(args Args, cfg *Config) error {
	bridge, err := getLink(p.host, cfg.Bridge)
	if err != nil {
		return err
	}
	link, err := getLink(p.host, HostLink(args.ContainerID))
	switch {
	case err != nil:
		return err
	case link.master != bridge.index:
		return fmt.Errorf("link %s is not on bridge %s", link.name, cfg.Bridge)
	case !link.up:
		return fmt.Errorf("link %s is down", link.name)
	case !bridge.up:
		return fmt.Errorf("bridge %s is down", cfg.Bridge)
	}
	return nil
}

// podAddresses are the addresses that a result gives the pod's interface.
func podAddresses(result *types100.Result, ifName string) (addrs []netip.Prefix) {
	for _, ip := range result.IPs {
		if ip == nil {
			continue
		}
		if i := ip.Interface; i != nil && (*i < 0 || *i >= len(result.Interfaces) || result.Interfaces[*i] == nil || result.Interfaces[*i].Name != ifName) {
			continue
		}
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		bits, _ := ip.Address.Mask.Size()
		addrs = append(addrs, netip.PrefixFrom(addr.Unmap(), bits))
	}
	return addrs
}

func (p *Plugin) checkLeases(pod, name string, addrs []netip.Prefix) error {
	p.mu.Lock()
	n := p.networks[name]
	p.mu.Unlock()
	if n == nil {
		return fmt.Errorf("network %s is not known", name)
	}
	for _, a := range addrs {
		if holder := n.pool.Holder(a.Addr()); holder != pod {
			return fmt.Errorf("address %s is leased to %q", a.Addr(), holder)
		}
	}
	return nil
}

// checkPod looks into the pod's namespace.
func checkPod(ns *os.File, ifName string, addrs []netip.Prefix, routes []*types.Route) error {
	var c *rtnl
	if err := inNamespace(int(ns.Fd()), func() (err error) { c, err = newRTNL(); return err }); err != nil {
		return err
	}
	defer c.close()
	for _, name := range []string{"lo", ifName} {
		link, err := getLink(c, name)
		if err != nil {
			return err
		}
		if !link.up {
			return fmt.Errorf("link %s is down", name)
		}
	}
	haveAddrs, err := listAddresses(c)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if !slices.Contains(haveAddrs, a) {
			return fmt.Errorf("address %s is missing", a)
		}
	}
	haveRoutes, err := listRoutes(c)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r == nil || r.GW == nil {
			continue
		}
		dst, _ := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		gw, _ := netip.AddrFromSlice(r.GW)
		want := Route{Dst: netip.PrefixFrom(dst.Unmap(), bits), GW: gw.Unmap()}
		if !slices.Contains(haveRoutes, want) {
			return fmt.Errorf("route to %s via %s is missing", want.Dst, want.GW)
		}
	}
	return nil
}

// listAddresses dumps the addresses of a namespace.
func listAddresses(c *rtnl) (all []netip.Prefix, err error) {
	err = dump(c, request(unix.RTM_GETADDR, unix.NLM_F_DUMP, nl.NewIfAddrmsg(unix.AF_UNSPEC)), unix.RTM_NEWADDR, unix.SizeofIfAddrmsg,
		func(head []byte, attrs map[uint16][]byte) {
			value := attrs[unix.IFA_LOCAL] // that of this end, where the two ends of a link have one each
			if value == nil {
				value = attrs[unix.IFA_ADDRESS]
			}
			if addr, ok := netip.AddrFromSlice(value); ok {
				all = append(all, netip.PrefixFrom(addr, int(nl.DeserializeIfAddrmsg(head).Prefixlen)))
			}
		})
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	return all, nil
}

// listRoutes dumps the routes of a namespace that have a gateway.
func listRoutes(c *rtnl) (all []Route, err error) {
	err = dump(c, request(unix.RTM_GETROUTE, unix.NLM_F_DUMP, nl.NewRtMsg()), unix.RTM_NEWROUTE, unix.SizeofRtMsg,
		func(head []byte, attrs map[uint16][]byte) {
			m := nl.DeserializeRtMsg(head)
			gw, ok := netip.AddrFromSlice(attrs[unix.RTA_GATEWAY])
			if !ok || m.Table != unix.RT_TABLE_MAIN {
				return
			}
			dst, ok := netip.AddrFromSlice(attrs[unix.RTA_DST])
			if !ok { // the default route has none
				if dst = netip.IPv4Unspecified(); gw.Is6() {
					dst = netip.IPv6Unspecified()
				}
			}
			all = append(all, Route{Dst: netip.PrefixFrom(dst, int(m.Dst_len)), GW: gw})
		})
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	return all, nil
}

// dump hands on the head of each message of the kind and its attributes by type.
func dump(c *rtnl, req *nl.NetlinkRequest, kind uint16, head int, each func(head []byte, attrs map[uint16][]byte)) error {
	msgs, errs, err := c.exchange([]*nl.NetlinkRequest{req})
	if err = errors.Join(append(errs, err)...); err != nil {
		return err
	}
	for _, m := range msgs {
		if m.Header.Type != kind || len(m.Data) < head {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m.Data[head:])
		if err != nil {
			return err
		}
		values := map[uint16][]byte{}
		for _, a := range attrs {
			values[a.Attr.Type] = a.Value
		}
		each(m.Data[:head], values)
	}
	return nil
}
