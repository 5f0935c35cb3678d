package cni

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

// TestCheckAtStart asks the plugins once for each pod that was attached before, where their version and the list allow
// it. A failure changes nothing.
func TestCheckAtStart(t *testing.T) {
	for name, c := range map[string]struct {
		version, keys string
		want          int
	}{
		"1.1.0":    {version: "1.1.0", want: 2},
		"0.4.0":    {version: "0.4.0", want: 2},
		"0.3.1":    {version: "0.3.1"},
		"disabled": {version: "1.0.0", keys: `"disableCheck":true,`},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, hasty)
			n.install("testplugin")
			n.write("10-x.conflist", n.of(c.version, "x", c.keys))
			n.uses("x")
			a, b, stuck := n.pod(), n.pod(), n.named("stuck")
			n.attach(a)
			n.attach(b)
			n.attach(stuck)
			n.turn("CHECK", "error", "DEL "+stuck.ID, "error")
			n.restart()
			if err := n.Detach(n.ctx, stuck); err == nil {
				t.Error("detached although the plugin fails")
			}
			if err := n.collected(a, b, stuck); err != nil {
				t.Error(err)
			}
			if err := n.Close(); err != nil { // when nothing checks any more
				t.Fatal(err)
			}
			n.open()
			checked := map[string]int{}
			for _, call := range n.calls() {
				if call.command != "CHECK" {
					continue
				}
				checked[call.id]++
				for _, want := range []string{`"prevResult":{`, `"` + n.records.get(call.id).NetNS + `"`, "K8S_POD_UID=uid-"} {
					if !strings.Contains(call.line, want) {
						t.Errorf("CHECK has no %s: %s", want, call.line)
					}
				}
			}
			if len(checked) != c.want || c.want > 0 && (checked[a.ID] == 0 || checked[b.ID] == 0) {
				t.Errorf("checked %v, want the %d pods whose DEL has not failed", checked, c.want)
			}
			if n.records.get(a.ID) == nil || n.records.get(b.ID) == nil {
				t.Error("a pod is detached because CHECK fails")
			}
			n.turn()
		})
	}
}

// TestCheckGivesWay to a caller that wants the pod.
func TestCheckGivesWay(t *testing.T) {
	n := newNode(t, hasty, func(c *Config) { c.pace.answer = time.Hour })
	n.install("testplugin")
	n.write("10-x.conflist", n.of("1.0.0", "x", ""))
	n.uses("x")
	pod := n.joined("pod")
	n.turn("CHECK", "hang")
	if err := n.GC(n.ctx, []string{pod.ID}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "CHECK hangs", func() bool { return n.count("CHECK") == 1 })
	n.detach(pod)
	n.nothingRuns()
}

// TestCheckOfTheBuiltInNetwork finds what is not as the ADD has left it.
func TestCheckOfTheBuiltInNetwork(t *testing.T) {
	n := newNode(t, dual)
	pod := n.pod(PortMapping{Protocol: "tcp", HostPort: 18102, ContainerPort: 80})
	ip := n.attach(pod)
	in := func(f func(eth0 netlink.Link) error) func() error {
		return func() error {
			inNS(t, pod.NetNS, func() error {
				eth0, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return f(eth0)
			})
			return nil
		}
	}
	host, bridgeLink := bridge.HostLink(pod.ID), n.cfg.Bridge
	onLink := func(name string, f func(netlink.Link) error) func() error {
		return func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return f(l)
		}
	}
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	route := func(eth0 netlink.Link) *netlink.Route {
		return &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: all, Gw: net.IPv4(10, 213, 0, 1)}
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(16, 32)}}
	sweep := func() error { return n.bridge.Sweep(n.ctx, map[string]bool{pod.ID: true}) }
	for _, c := range []struct {
		name, want string
		spoil      func() error
		mend       func() error
	}{
		{"as it is made", "", nil, nil},
		{"host end down", "link " + host + " is down", onLink(host, netlink.LinkSetDown), onLink(host, netlink.LinkSetUp)},
		{"not on the bridge", "is not on bridge " + bridgeLink, onLink(host, netlink.LinkSetNoMaster), func() error {
			b, err := netlink.LinkByName(bridgeLink)
			if err != nil {
				return err
			}
			return onLink(host, func(l netlink.Link) error { return netlink.LinkSetMaster(l, b) })()
		}},
		{"bridge down", "bridge " + bridgeLink + " is down", onLink(bridgeLink, netlink.LinkSetDown), onLink(bridgeLink, netlink.LinkSetUp)},
		{"no default route", "in the pod: route to 0.0.0.0/0 via 10.213.0.1 is missing",
			in(func(l netlink.Link) error { return netlink.RouteDel(route(l)) }), in(func(l netlink.Link) error { return netlink.RouteAdd(route(l)) })},
		{"no address", fmt.Sprintf("in the pod: address %s/16 is missing", ip),
			in(func(l netlink.Link) error { return netlink.AddrDel(l, address) }), in(func(l netlink.Link) error {
				return netlink.AddrAdd(l, address)
			})},
		{"address but no route", "route to 0.0.0.0/0", nil, in(func(l netlink.Link) error { return netlink.RouteAdd(route(l)) })},
		{"no host port", "host port 0.0.0.0:18102/tcp is not in nftables table inet " + n.cfg.Table, func() error {
			c := &nftables.Conn{}
			c.FlushSet(&nftables.Set{Name: "anyports4", Table: &nftables.Table{Name: n.cfg.Table, Family: nftables.TableFamilyINet}})
			return c.Flush()
		}, sweep},
		{"no table", "of nftables table inet " + n.cfg.Table, func() error { deleteTable(t, n.cfg.Table); return nil }, sweep},
		{"as it was made, again", "", nil, nil},
		{"no interface, and so no other end", "link " + host + ": not found", in(netlink.LinkDel), nil},
	} {
		if c.spoil != nil {
			if err := c.spoil(); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		err := n.check(n.ctx, pod.ID)
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if c.mend != nil {
			if err := c.mend(); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
	}
}
