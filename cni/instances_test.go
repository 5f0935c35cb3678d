package cni

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestInstancesBesideEachOther has two daemons with a bridge, a subnet and a table each: their pods reach each other
// and each other's host ports, and keep what they have when the other daemon goes.
func TestInstancesBesideEachOther(t *testing.T) {
	one := newNode(t)
	two := newNode(t, func(c *Config) {
		c.Bridge, c.Table = c.Bridge+"b", c.Table+"-b"
		c.Subnets = []netip.Prefix{netip.MustParsePrefix("10.214.0.0/16")}
	})
	nodes := map[*node]netip.Addr{one: netip.MustParseAddr("10.213.0.1"), two: netip.MustParseAddr("10.214.0.1")}
	ports := map[*node]uint16{one: 18140, two: 18141}
	pods, ips := map[*node]Pod{}, map[*node]netip.Addr{}
	for n := range nodes {
		pods[n] = n.named(n.cfg.Table, PortMapping{Protocol: "tcp", HostPort: ports[n], ContainerPort: 80})
		ips[n] = n.attach(pods[n])
		listen(t, pods[n].NetNS, "tcp", at(ips[n], 80).String())
	}
	all := func() {
		t.Helper()
		for n := range nodes {
			other := map[*node]*node{one: two, two: one}[n]
			reaches(t, pods[n].NetNS, "tcp", at(ips[other], 80), netip.Addr{})
			for _, gateway := range nodes {
				reaches(t, pods[n].NetNS, "tcp", at(gateway, ports[other]), netip.Addr{})
				reaches(t, pods[n].NetNS, "tcp", at(gateway, ports[n]), nodes[n])
			}
			reaches(t, "", "tcp", at(netip.MustParseAddr("127.0.0.1"), ports[n]), nodes[n])
		}
	}
	all()
	two.restart()
	if err := two.GC(two.ctx, []string{pods[two].ID}); err != nil {
		t.Fatal(err)
	}
	all()
}

// TestFragments sends a datagram that needs several packets to a host port and has it come back: only the first of
// them has ports in it.
func TestFragments(t *testing.T) {
	n := newNode(t, dual)
	out, node, host := outside(t)
	pod := n.pod(PortMapping{Protocol: "udp", HostPort: 18142, ContainerPort: 53})
	n.attach(pod)
	var server net.PacketConn
	inNS(t, pod.NetNS, func() (err error) { server, err = net.ListenPacket("udp", "[::]:53"); return err })
	t.Cleanup(func() { server.Close() })
	go func() {
		for buf := make([]byte, 16<<10); ; {
			size, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(buf[:size], from)
		}
	}()
	for i := range host {
		c := udpClient(t, out, at(host[i], 18143), at(node[i], 18142))
		want, got := strings.Repeat("0123456789", 600), make([]byte, 16<<10)
		eventually(t, "the datagram comes back from "+node[i].String(), func() bool {
			_, _ = c.Write([]byte(want))
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			size, _ := c.Read(got)
			return string(got[:size]) == want
		})
	}
}
