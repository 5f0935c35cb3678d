package network

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images/peer"
)

// TestReferencePlugins has the pods connected by the CNI project's plugins bridge, host-local and portmap.
func TestReferencePlugins(t *testing.T) {
	out, fromOutside := outside(t)
	instance, leases := harness.NewWithReferencePlugins(t, harness.Config{Registry: harness.Registry(t)})
	n := &node{Instance: instance, t: t}
	n.pull()
	server := n.pod("server", ports(port(tcp, 18080, 80, ""), port(udp, 18080, 80, ""))).serve()
	client := n.pod("client").serve()
	must(t, out.Do(func() error { return serve(t, "[::]:80") }))
	serverIPs, clientIPs := server.ips(), client.ips()
	for i, subnet := range harness.ReferenceSubnets {
		if len(serverIPs) != 2 || !subnet.Contains(serverIPs[i]) {
			t.Fatalf("the pod has %v, want an address of each of %v in this order", serverIPs, harness.ReferenceSubnets)
		}
	}
	n.serving(netip.AddrPortFrom(serverIPs[0], 80), netip.AddrPortFrom(clientIPs[0], 80))
	gateway := harness.ReferenceSubnets[0].Addr().Next().String()
	check := func(t *testing.T) {
		for i := range serverIPs {
			expect(t, client.ask, patience, slices.Concat(both("a pod", serverIPs[i], 80, clientIPs[i].String()),
				both("another host, which sees the node", out.Host[i], 80, out.Node[i].String())))
			expect(t, fromOutside, patience, both("a host port", out.Node[i], 18080, out.Host[i].String()))
		}
		expect(t, here, patience, both("a host port of the node's address", out.Node[0], 18080, out.Node[0].String()))
		expect(t, here, patience, both("a host port of the loopback", netip.MustParseAddr("127.0.0.1"), 18080, gateway))
	}
	t.Run("new", check)
	must(t, n.Restart(t.Context()))
	t.Run("after a restart", check)
	if got := leases(); len(got) != 4 {
		t.Errorf("leases of two pods: %s", strings.Join(got, " "))
	}
	t.Run("removed", func(t *testing.T) {
		must(t, server.remove())
		must(t, client.remove())
		for i := range out.Node {
			expect(t, fromOutside, patience, both("a host port of a removed pod", out.Node[i], 18080, peer.Refused))
		}
		if got := leases(); len(got) > 0 {
			t.Errorf("leases of removed pods: %s", strings.Join(got, " "))
		}
	})
}
