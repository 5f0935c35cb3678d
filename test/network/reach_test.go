package network

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images/peer"
)

const tcp, udp = runtimeapi.Protocol_TCP, runtimeapi.Protocol_UDP

// question is one way through the network, and who must be seen at its end: an address, or how it fails.
type question struct {
	what    string
	network string
	to      netip.AddrPort
	want    string
}

// both is a question over TCP and over UDP.
func both(what string, addr netip.Addr, port uint16, want string) []question {
	to := netip.AddrPortFrom(addr, port)
	return []question{{what, "tcp", to, want}, {what, "udp", to, want}}
}

// TestReach asks everybody from everywhere: over TCP and UDP, IPv4 and IPv6, directly and through host ports.
func TestReach(t *testing.T) {
	out, fromOutside := outside(t)
	n := newNode(t, harness.Config{Subnets: dual})
	n.pull()
	server := n.pod("server", ports(
		port(tcp, 18080, 80, ""), port(udp, 18080, 80, ""),
		port(tcp, 18081, 80, out.Node[0].String()), port(udp, 18081, 80, out.Node[1].String()),
		port(tcp, 18082, 80, "127.0.0.1"),
	)).serve()
	client, mapped := n.pod("client").serve(), n.pod("mapped", userNamespace).serve()
	host := n.pod("host", hostNetwork).serve(fmt.Sprintf("%s:18090", out.Node[0]), fmt.Sprintf("[%s]:18090", out.Node[1]))
	must(t, out.Do(func() error { return serve(t, "[::]:80") }))
	gateways := []netip.Addr{netip.MustParseAddr("10.212.0.1"), netip.MustParseAddr("fd00:212::1")}
	must(t, serve(t, gateways[0].String()+":18091", "["+gateways[1].String()+"]:18091"))
	serverIPs, clientIPs, mappedIPs := server.ips(), client.ips(), mapped.ips()
	n.serving(netip.AddrPortFrom(serverIPs[0], 80), netip.AddrPortFrom(clientIPs[0], 80), netip.AddrPortFrom(mappedIPs[0], 80),
		netip.AddrPortFrom(out.Node[1], 18090))

	for i, family := range []string{"IPv4", "IPv6"} {
		serverIP, clientIP, gateway, outsideNode, outsideHost := serverIPs[i], clientIPs[i], gateways[i], out.Node[i], out.Host[i]
		loopback := both("the node's loopback at a host port", netip.MustParseAddr("127.0.0.1"), 18080, gateway.String())
		if i == 1 { // IPv6 has nothing like route_localnet
			loopback = both("the node's loopback at a host port", netip.IPv6Loopback(), 18080, peer.Refused)
		}
		for from, w := range map[string]struct {
			ask       asker
			questions []question
		}{
			"a pod": {client.ask, slices.Concat(
				both("a pod", serverIP, 80, clientIP.String()),
				both("a pod with a user namespace", mappedIPs[i], 80, clientIP.String()),
				both("the node at its address on the bridge", gateway, 18091, clientIP.String()),
				both("a pod on the host's network", outsideNode, 18090, clientIP.String()),
				both("another host, which sees the node", outsideHost, 80, outsideNode.String()),
				both("a host port of the node's address", outsideNode, 18080, gateway.String()),
				both("a host port of the node's address on the bridge", gateway, 18080, gateway.String()),
			)},
			"a pod with a user namespace": {mapped.ask, slices.Concat(
				both("a pod", serverIP, 80, mappedIPs[i].String()),
				both("another host", outsideHost, 80, outsideNode.String()),
				both("a host port of the node's address", outsideNode, 18080, gateway.String()),
			)},
			"the pod itself": {server.ask, slices.Concat(
				both("itself", serverIP, 80, serverIP.String()),
				both("its own host port", outsideNode, 18080, gateway.String()),
			)},
			"the node": {here, slices.Concat(loopback,
				both("a pod", serverIP, 80, gateway.String()),
				both("a host port of its own address", outsideNode, 18080, outsideNode.String()),
			)},
			"a pod on the host's network": {host.ask, slices.Concat(loopback,
				both("a pod", serverIP, 80, gateway.String()),
				both("another host", outsideHost, 80, outsideNode.String()),
				both("a host port", outsideNode, 18080, outsideNode.String()),
			)},
			"another host": {fromOutside, slices.Concat(
				both("a host port, which sees the host's own address", outsideNode, 18080, outsideHost.String()),
				both("a pod on the host's network", outsideNode, 18090, outsideHost.String()),
			)},
		} {
			t.Run(family+" from "+from, func(t *testing.T) { expect(t, w.ask, patience, w.questions) })
		}
	}
	t.Run("host ports of one address", func(t *testing.T) {
		gateway := gateways[0].String()
		expect(t, fromOutside, patience, []question{
			{"of IPv4", "tcp", netip.AddrPortFrom(out.Node[0], 18081), out.Host[0].String()},
			{"of IPv6", "udp", netip.AddrPortFrom(out.Node[1], 18081), out.Host[1].String()},
			{"of IPv4, asked over IPv6", "tcp", netip.AddrPortFrom(out.Node[1], 18081), peer.Refused},
			{"of IPv6, asked over IPv4", "udp", netip.AddrPortFrom(out.Node[0], 18081), peer.Refused},
			{"of 127.0.0.1", "tcp", netip.AddrPortFrom(out.Node[0], 18082), peer.Refused},
			{"of no pod", "tcp", netip.AddrPortFrom(out.Node[0], 18083), peer.Refused},
		})
		expect(t, here, patience, []question{
			{"of 127.0.0.1", "tcp", netip.MustParseAddrPort("127.0.0.1:18082"), gateway},
			{"of another address", "tcp", netip.MustParseAddrPort("127.0.0.1:18081"), peer.Refused},
		})
	})
	t.Run("pods from outside", func(t *testing.T) { // without a route there is no way to them
		expect(t, fromOutside, impatience, []question{
			{"a pod's own address", "tcp", netip.AddrPortFrom(serverIPs[0], 80), "dial tcp " + serverIPs[0].String() + ":80: connect: network is unreachable"},
		})
	})
	t.Run("without the daemon", func(t *testing.T) {
		must(t, n.Kill())
		for i := range gateways {
			expect(t, fromOutside, patience, both("a host port", out.Node[i], 18080, out.Host[i].String()))
			expect(t, here, patience, both("a pod", serverIPs[i], 80, gateways[i].String()))
			must(t, server.do(func() error {
				expect(t, here, patience, append(both("a pod", clientIPs[i], 80, serverIPs[i].String()), both("another host", out.Host[i], 80, out.Node[i].String())...))
				return nil
			}))
		}
		must(t, n.StartDaemon(t.Context()))
		if got := server.ips(); !slices.Equal(got, serverIPs) {
			t.Errorf("addresses %v were %v", got, serverIPs)
		}
		expect(t, fromOutside, patience, both("a host port after the restart", out.Node[0], 18080, out.Host[0].String()))
	})
	t.Run("removed", func(t *testing.T) {
		must(t, server.remove())
		for i := range gateways {
			expect(t, fromOutside, patience, both("a host port of a removed pod", out.Node[i], 18080, peer.Refused))
		}
		expect(t, here, patience, both("a host port of a removed pod", netip.MustParseAddr("127.0.0.1"), 18080, peer.Refused))
	})
}

func expect(t *testing.T, ask asker, limit time.Duration, questions []question) {
	t.Helper()
	var asked []string
	for _, q := range questions {
		asked = append(asked, peer.Question(q.network, q.to))
	}
	answers := ask(limit, asked)
	if len(answers) != len(questions) {
		t.Fatalf("%d answers to %d questions: %q", len(answers), len(questions), answers)
	}
	for i, q := range questions {
		if answers[i] != q.want {
			t.Errorf("%s (%s): seen %q, want %q", q.what, asked[i], answers[i], q.want)
		}
	}
}
