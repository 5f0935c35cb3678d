package cni

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSecurity has attacks of pods on each other, on the node and on other hosts. docs/security.md lists them.
func TestSecurity(t *testing.T) {
	t.Run("CVE-2019-9946", testForeignPort)
	t.Run("node-loopback", testNodeLoopback)
}

// testForeignPort (CVE-2019-9946, CVE-2025-67499): a pod's host port is the node's, and not that of other hosts with
// which pods talk through the node, or which talk with one another through it.
func testForeignPort(t *testing.T) {
	n := newNode(t, dual)
	out, node, host := outside(t)
	client := n.pod()
	result, err := n.Attach(n.ctx, client)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.detach(client) })
	n.attach(n.pod(PortMapping{Protocol: "tcp", HostPort: 18040, ContainerPort: 80}, PortMapping{Protocol: "udp", HostPort: 18040, ContainerPort: 80},
		PortMapping{Protocol: "tcp", HostPort: 18041, ContainerPort: 80, HostIP: node[0]})) // nothing listens in it
	for i := range host {
		for _, server := range []netip.AddrPort{at(host[i], 18040), at(host[i], 18041)} {
			for _, network := range []string{"tcp", "udp"} {
				listen(t, out, network, server.String())
				reaches(t, client.NetNS, network, server, node[i])
				reaches(t, "", network, server, node[i])
			}
		}
		server := at(result.IPs[i], 18040) // of another pod
		listen(t, client.NetNS, "tcp", server.String())
		reaches(t, "", "tcp", server, netip.Addr{})
	}
}

// testNodeLoopback: route_localnet, which lets host ports answer on 127.0.0.1, must not open what listens there to
// pods, whatever they write into their packets.
func testNodeLoopback(t *testing.T) {
	n := newNode(t, dual)
	pod := n.pod()
	result, err := n.Attach(n.ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.detach(pod) })
	bridge, err := net.InterfaceByName(n.cfg.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	// As it may be set for a load balancer. Without it the kernel drops what comes from its own addresses.
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+n.cfg.Bridge+"/accept_local", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	gateways := []netip.Addr{netip.MustParseAddr("10.213.0.1"), netip.MustParseAddr("fd00:213::1")}
	for i, loopback := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		server, err := net.ListenPacket([]string{"udp4", "udp6"}[i], ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		port := netip.MustParseAddrPort(server.LocalAddr().String()).Port()
		for _, p := range []struct {
			from, to netip.Addr
			text     string
		}{
			{result.IPs[i], loopback, "to the loopback"},
			{loopback, gateways[i], "from the loopback"},
			{result.IPs[i], gateways[i], "as it should be"}, // arrives, and so would those before
		} {
			inNS(t, pod.NetNS, func() error { return sendFrame(bridge.HardwareAddr, at(p.from, 1234), at(p.to, port), p.text) })
		}
		buf := make([]byte, 64)
		_ = server.SetReadDeadline(time.Now().Add(time.Minute))
		size, _, err := server.ReadFrom(buf)
		if err != nil || string(buf[:size]) != "as it should be" {
			t.Errorf("the node got %q, %v; want what is from and to addresses that are not the loopback's", buf[:size], err)
		}
	}
}

// sendFrame sends a UDP packet from eth0 straight to the bridge, with whatever addresses.
func sendFrame(bridge net.HardwareAddr, from, to netip.AddrPort, text string) error {
	eth, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(text)))
	udp = append(append(udp, 0, 0), text...)
	pseudo := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, 0, byte(len(udp)>>8), byte(len(udp)), 0, 0, 0, unix.IPPROTO_UDP)
	binary.BigEndian.PutUint16(udp[6:], internetChecksum(append(pseudo, udp...)))
	ip := []byte{0x60, 0, 0, 0, 0, byte(len(udp)), unix.IPPROTO_UDP, 64}
	protocol := uint16(unix.ETH_P_IPV6)
	if to.Addr().Is4() {
		ip, protocol = []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, unix.ETH_P_IP
	}
	ip = append(append(ip, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	if to.Addr().Is4() {
		binary.BigEndian.PutUint16(ip[10:], internetChecksum(ip))
	}
	sa := &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: eth.Index, Halen: 6}
	copy(sa.Addr[:], bridge)
	return unix.Sendto(fd, append(ip, udp...), 0, sa)
}

// internetChecksum is that of RFC 1071.
func internetChecksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
