package bridge

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/cni/internal/ipam"
)

// Route is an extra or default route of the pod.
type Route struct {
	Dst         netip.Prefix
	GW          netip.Addr // zero = the gateway of the family, or none where the scope is the link's
	MTU, AdvMSS int        // 0 = the kernel's choice
	Priority    int
	Table       *int // nil = main
	Scope       *int // nil = universe with a gateway, else link
}

// rawRoute is a route as the CNI specification has it since version 1.1.
type rawRoute struct {
	Dst, GW               string
	MTU, AdvMSS, Priority int
	Table, Scope          *int
}

// routes reads the routes of a configuration. As with the reference plugins they take the place of the default routes
// unless isDefaultGateway asks for those too; with neither there are default routes, as pods expect them.
func (raw *rawConfig) routes(cfg *Config) error {
	for _, r := range raw.Routes {
		route, err := r.parse()
		if err != nil {
			return err
		}
		cfg.Routes = append(cfg.Routes, route)
	}
	cfg.Default = len(raw.Routes) == 0
	if raw.IsDefaultGW != nil {
		cfg.Default = *raw.IsDefaultGW
	}
	if raw.IsDefaultGW != nil && *raw.IsDefaultGW && !cfg.Gateway {
		return fmt.Errorf("isDefaultGateway without isGateway: %w", errdefs.ErrInvalidArgument)
	}
	cfg.Default = cfg.Default && cfg.Gateway
	return nil
}

func (r rawRoute) parse() (route Route, err error) {
	if route.Dst, err = netip.ParsePrefix(r.Dst); err != nil {
		return route, fmt.Errorf("route dst %q is no prefix: %w", r.Dst, errdefs.ErrInvalidArgument)
	}
	route.Dst = route.Dst.Masked()
	if r.GW != "" {
		if route.GW, err = netip.ParseAddr(r.GW); err != nil || route.GW.Is4() != route.Dst.Addr().Is4() || route.GW.Zone() != "" {
			return route, fmt.Errorf("route gw %q is no address of the family of %s: %w", r.GW, route.Dst, errdefs.ErrInvalidArgument)
		}
	}
	minMTU := 68 // RFC 791
	if route.Dst.Addr().Is6() {
		minMTU = 1280
	}
	for _, f := range []struct {
		name     string
		value    *int
		min, max int
		zero     bool // 0 = not given
	}{{"mtu", &r.MTU, minMTU, 65535, true}, {"advmss", &r.AdvMSS, 1, 65535, true}, {"priority", &r.Priority, 0, math.MaxUint32, true},
		{"table", r.Table, 0, math.MaxUint32, false}, {"scope", r.Scope, 0, unix.RT_SCOPE_HOST, false}} {
		if f.value != nil && !(f.zero && *f.value == 0) && (*f.value < f.min || *f.value > f.max) {
			return route, fmt.Errorf("route to %s: %s %d is not %d-%d: %w", route.Dst, f.name, *f.value, f.min, f.max, errdefs.ErrInvalidArgument)
		}
	}
	if r.Scope != nil && *r.Scope >= unix.RT_SCOPE_LINK && r.GW != "" {
		return route, fmt.Errorf("route to %s: scope %d has no gw: %w", route.Dst, *r.Scope, errdefs.ErrInvalidArgument)
	}
	route.MTU, route.AdvMSS, route.Priority, route.Table, route.Scope = r.MTU, r.AdvMSS, r.Priority, r.Table, r.Scope
	return route, nil
}

// onLink tells whether the destination is on the network itself.
func (r Route) onLink() bool { return r.Scope != nil && *r.Scope >= unix.RT_SCOPE_LINK }

// podRoutes are the routes of a pod with the addresses.
func (c *Config) podRoutes(addrs []ipam.Address) []Route {
	gateway := func(is4 bool) netip.Addr {
		for _, a := range addrs {
			if a.Gateway.Is4() == is4 {
				return a.Gateway
			}
		}
		return netip.Addr{}
	}
	var routes []Route
	for _, r := range c.Routes {
		gw := gateway(r.Dst.Addr().Is4())
		if !gw.IsValid() {
			continue // the pod has no address of that family
		}
		if !r.GW.IsValid() && !r.onLink() {
			r.GW = gw
		}
		routes = append(routes, r)
	}
	if !c.Default {
		return routes
	}
	for _, dst := range []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)} {
		gw := gateway(dst.Addr().Is4())
		if gw.IsValid() && !slices.ContainsFunc(routes, func(r Route) bool { return r.Dst == dst && r.Table == nil }) {
			routes = append(routes, Route{Dst: dst, GW: gw})
		}
	}
	return routes
}

func (r Route) result() *types.Route {
	return &types.Route{Dst: ipNet(r.Dst), GW: r.GW.AsSlice(), MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Table: r.Table, Scope: r.Scope}
}

// add is the request that adds the route to a link.
func (r Route) add(link int) *nl.NetlinkRequest {
	m := nl.NewRtMsg()
	m.Family = unix.AF_INET
	if r.Dst.Addr().Is6() {
		m.Family = unix.AF_INET6
	}
	m.Dst_len = uint8(r.Dst.Bits())
	attrs := []*nl.RtAttr{u32(unix.RTA_OIF, uint32(link))}
	if r.GW.IsValid() {
		attrs = append(attrs, addrAttr(unix.RTA_GATEWAY, r.GW))
	} else {
		m.Scope = unix.RT_SCOPE_LINK
	}
	if r.Scope != nil {
		m.Scope = uint8(*r.Scope)
	}
	if r.Dst.Bits() > 0 {
		attrs = append(attrs, addrAttr(unix.RTA_DST, r.Dst.Addr()))
	}
	if r.Priority > 0 {
		attrs = append(attrs, u32(unix.RTA_PRIORITY, uint32(r.Priority)))
	}
	if r.Table != nil {
		m.Table = unix.RT_TABLE_UNSPEC // the attribute's, which has more bits
		attrs = append(attrs, u32(unix.RTA_TABLE, uint32(*r.Table)))
	}
	var metrics []*nl.RtAttr
	if r.MTU > 0 {
		metrics = append(metrics, u32(unix.RTAX_MTU, uint32(r.MTU)))
	}
	if r.AdvMSS > 0 {
		metrics = append(metrics, u32(unix.RTAX_ADVMSS, uint32(r.AdvMSS)))
	}
	if len(metrics) > 0 {
		attrs = append(attrs, nest(unix.RTA_METRICS, metrics...))
	}
	return request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, m, attrs...)
}
