package network

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images/peer"
)

// A default network of IPv6 alone: pods lack IPv4, and nothing else.
func TestIPv6Only(t *testing.T) {
	out, fromOutside := outside(t)
	n := newNode(t, harness.Config{Subnets: "fd00:212::/64"})
	n.pull()
	p := n.pod("six", ports(port(tcp, 18080, 80, ""), port(udp, 18080, 80, "::")), func(c *runtimeapi.PodSandboxConfig) {
		c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"fd00:53::1"}, Searches: []string{"net.svc.cluster.local"}}
	}).serve()
	p.within("fd00:212::/64")
	ip := p.ips()[0]
	if got := p.exec("cat", "/etc/resolv.conf"); got != "search net.svc.cluster.local\nnameserver fd00:53::1\n" {
		t.Errorf("resolv.conf:\n%s", got)
	}
	if hosts := p.exec("cat", "/etc/hosts"); !strings.Contains(hosts, "\n"+ip.String()+"\tsix\n") {
		t.Errorf("hosts:\n%s", hosts)
	}
	if got := p.exec("ip", "-o", "-4", "addr", "show", "dev", "eth0"); got != "" {
		t.Errorf("eth0 has IPv4: %s", got)
	}
	if lo := p.exec("ip", "-o", "addr", "show", "dev", "lo"); !strings.Contains(lo, " 127.0.0.1/8 ") || !strings.Contains(lo, " ::1/128 ") {
		t.Errorf("the loopback has not both families: %s", lo)
	}
	must(t, out.Do(func() error { return serve(t, "[::]:80") }))
	node, host, gateway := out.Node[1], out.Host[1], netip.MustParseAddr("fd00:212::1")
	n.serving(netip.AddrPortFrom(ip, 80))
	expect(t, fromOutside, patience, both("a host port", node, 18080, host.String()))
	expect(t, p.ask, patience, append(both("another host", host, 80, node.String()), both("its own host port", node, 18080, gateway.String())...))
	expect(t, fromOutside, patience, both("a host port of the other family", out.Node[0], 18080, peer.Refused))
	if _, err := n.try("four", ports(port(tcp, 18081, 80, out.Node[0].String()))); err == nil || !strings.Contains(err.Error(), out.Node[0].String()) {
		t.Errorf("a host port of an IPv4 address: %v, want an error that names it", err)
	}
}

// From the first pod on other hosts reach pods: the kernel does not first look for duplicates of the address that the
// bridge has for asking neighbours, which takes a second or two.
func TestBridgeIsThereAtOnce(t *testing.T) {
	n := newNode(t, harness.Config{Subnets: dual})
	const asked = "Icmp6OutNeighborSolicits"
	before, err := counter(asked)
	must(t, err)
	n.pod("first")
	n.eventually("the bridge has a link-local address", func() bool {
		link, err := netlink.LinkByName(n.Bridge)
		must(t, err)
		addrs, err := harness.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, unix.AF_INET6) })
		must(t, err)
		return slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 })
	})
	if after, err := counter(asked); err != nil || after != before {
		t.Errorf("the node has asked %d times for neighbours while nobody sent anything, %v", after-before, err)
	}
}
