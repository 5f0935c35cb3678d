package cni

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestHostIPs asks on every address of the node for ports of each kind of hostIP: one of a family is of no other.
func TestHostIPs(t *testing.T) {
	n := newNode(t, dual)
	out, node, _ := outside(t)
	client := n.pod()
	n.attach(client)
	local4, local6 := netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
	gateway4, gateway6 := netip.MustParseAddr("10.213.0.1"), netip.MustParseAddr("fd00:213::1")
	cases := []struct {
		hostIP netip.Addr
		served []netip.Addr // of node, local4 and the gateways
	}{
		{netip.Addr{}, []netip.Addr{node[0], node[1], local4, gateway4, gateway6}},
		{netip.IPv4Unspecified(), []netip.Addr{node[0], local4, gateway4}},
		{netip.IPv6Unspecified(), []netip.Addr{node[1], gateway6}},
		{node[0], []netip.Addr{node[0]}},
		{node[1], []netip.Addr{node[1]}},
		{local4, []netip.Addr{local4}},
	}
	var mappings []PortMapping
	for i, c := range cases {
		mappings = append(mappings, PortMapping{Protocol: "tcp", HostPort: uint16(18050 + i), ContainerPort: 80, HostIP: c.hostIP})
	}
	pod := n.pod(mappings...)
	n.attach(pod)
	listen(t, pod.NetNS, "tcp", "[::]:80")
	for i, c := range cases {
		for _, from := range []struct {
			ns    string
			addrs []netip.Addr
		}{
			{"", []netip.Addr{node[0], node[1], local4, local6, gateway4, gateway6}},
			{out, []netip.Addr{node[0], node[1]}},
			{client.NetNS, []netip.Addr{node[0], node[1], gateway4, gateway6}},
			{pod.NetNS, []netip.Addr{node[0], node[1], gateway4, gateway6}},
		} {
			for _, addr := range from.addrs {
				served := false
				for _, s := range c.served {
					served = served || s == addr
				}
				_, err := ask(t, from.ns, "tcp", at(addr, uint16(18050+i)), time.Minute)
				if served && err != nil || !served && !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("port of hostIP %s on %s from %q: %v, served: %t", c.hostIP, addr, from.ns, err, served)
				}
			}
		}
	}
	_, err := n.Attach(n.ctx, n.pod(PortMapping{Protocol: "tcp", HostPort: 18059, ContainerPort: 80, HostIP: local6}))
	if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "route_localnet") {
		t.Errorf("hostIP ::1: %v, want a refusal with its reason", err)
	}
}

// TestNonMasqueradeCIDRs has pods go with their own address to networks that are named, and with the node's elsewhere.
func TestNonMasqueradeCIDRs(t *testing.T) {
	if !apart(t) {
		return
	}
	n := newNode(t, dual, func(c *Config) {
		c.NonMasqueradeCIDRs = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:213::/64")}
	})
	out, node, host := outside(t)
	far := [2]netip.Addr{netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8:99::9")} // of the other host too
	route := func(dst string, via netip.Addr) error {
		_, p, err := net.ParseCIDR(dst)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: p, Gw: via.AsSlice()})
	}
	inNS(t, out, func() error {
		up, err := netlink.LinkByName("up0")
		if err != nil {
			return err
		}
		var errs []error
		for _, a := range far {
			addr, _ := netlink.ParseAddr(netip.PrefixFrom(a, a.BitLen()).String())
			addr.Flags = unix.IFA_F_NODAD
			errs = append(errs, netlink.AddrAdd(up, addr))
		}
		return errors.Join(append(errs, route("10.213.0.0/16", node[0]), route("fd00:213::/64", node[1]))...)
	})
	for i, a := range far {
		if err := route(netip.PrefixFrom(a, a.BitLen()).String(), host[i]); err != nil { // goes with the link
			t.Fatal(err)
		}
	}
	pod := n.pod()
	result, err := n.Attach(n.ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.detach(pod) })
	for i, ip := range result.IPs {
		reaches(t, pod.NetNS, "tcp", listen(t, out, "tcp", at(host[i], 0).String()), ip)
		reaches(t, pod.NetNS, "tcp", listen(t, out, "tcp", at(far[i], 0).String()), node[i])
	}
}
