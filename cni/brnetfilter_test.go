package cni

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

// TestBridgeNetfilter sends what pods send one another with and without br_netfilter, which nodes of Kubernetes load:
// with it packets between two ports of a bridge pass the node's tables too.
func TestBridgeNetfilter(t *testing.T) {
	for _, on := range []string{"0", "1"} {
		t.Run(on, func(t *testing.T) {
			n := newNode(t, dual)
			bridgeNetfilter(t, on)
			mappings := []PortMapping{{Protocol: "TCP", HostPort: 18130, ContainerPort: 80}, {Protocol: "UDP", HostPort: 18130, ContainerPort: 53}}
			client, server := n.pod(), n.pod(mappings...)
			var ips [2][]netip.Addr
			for i, pod := range []Pod{client, server} {
				result, err := n.Attach(n.ctx, pod)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { n.detach(pod) })
				ips[i] = result.IPs
			}
			for _, network := range []string{"tcp", "udp"} {
				port := listen(t, server.NetNS, network, map[string]string{"tcp": "[::]:80", "udp": "[::]:53"}[network]).Port()
				for i, gateway := range []netip.Addr{netip.MustParseAddr("10.213.0.1"), netip.MustParseAddr("fd00:213::1")} {
					reaches(t, client.NetNS, network, at(ips[1][i], port), ips[0][i])
					reaches(t, client.NetNS, network, at(gateway, 18130), gateway) // both ways through the bridge, with br_netfilter
					reaches(t, server.NetNS, network, at(gateway, 18130), gateway) // out of the port that it came in by
				}
			}
			if got := broadcasts(t, client.NetNS, server.NetNS); got != ips[0][0] {
				t.Errorf("a broadcast of %s comes from %s", ips[0][0], got)
			}
		})
	}
}

// bridgeNetfilter switches what the module does, for this test.
func bridgeNetfilter(t *testing.T, on string) {
	t.Helper()
	for _, name := range []string{"iptables", "ip6tables"} {
		path := "/proc/sys/net/bridge/bridge-nf-call-" + name
		before, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			if on == "0" {
				return
			}
			t.Skip("the kernel has no br_netfilter")
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(on), 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.WriteFile(path, before, 0) })
	}
}

// broadcasts sends to everybody on the pod's network and returns who it was for another pod.
func broadcasts(t *testing.T, from, to string) netip.Addr {
	t.Helper()
	var r net.PacketConn
	inNS(t, to, func() (err error) { r, err = net.ListenPacket("udp4", "0.0.0.0:18131"); return err })
	defer r.Close()
	var c net.Conn
	inNS(t, from, func() (err error) {
		d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
			var err error
			return errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1) }), err)
		}}
		c, err = d.DialContext(context.Background(), "udp4", "255.255.255.255:18131")
		return err
	})
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	_ = r.SetReadDeadline(time.Now().Add(time.Minute))
	_, addr, err := r.ReadFrom(make([]byte, 8))
	if err != nil {
		t.Fatal(err)
	}
	return netip.MustParseAddrPort(addr.String()).Addr()
}

// TestServices calls a pod by an address that a table of somebody else translates, as kube-proxy's does. The pod sees who
// calls where the answer comes back through the tables without more.
func TestServices(t *testing.T) {
	for _, on := range []string{"0", "1"} {
		t.Run(on, func(t *testing.T) {
			n := newNode(t)
			bridgeNetfilter(t, on)
			client, server := n.pod(), n.pod()
			own, ip := n.attach(client), n.attach(server)
			listen(t, server.NetNS, "tcp", at(ip, 80).String())
			service := netip.MustParseAddr("198.51.100.80")
			translate(t, n.cfg.Table+"-services", service, ip)
			seen := map[string]netip.Addr{"0": netip.MustParseAddr("10.213.0.1"), "1": own}
			reaches(t, client.NetNS, "tcp", at(service, 80), seen[on])
			bridgeNetfilter(t, map[string]string{"0": "1", "1": "0"}[on])
			if err := n.bridgeStatus(); err != nil { // which the daemon asks for every half a minute
				t.Error(err)
			}
			reaches(t, client.NetNS, "tcp", at(service, 80), seen[map[string]string{"0": "1", "1": "0"}[on]])
		})
	}
}

// bridgeStatus asks the built-in network for its STATUS.
func (n *node) bridgeStatus() error {
	_, err := n.bridge.Run(n.ctx, bridge.Args{Command: "STATUS"})
	return err
}

// translate makes a table that sends what pods send to an address to another one.
func translate(t *testing.T, name string, from, to netip.Addr) {
	t.Helper()
	c := &nftables.Conn{}
	table := c.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyIPv4})
	chain := c.AddChain(&nftables.Chain{Table: table, Name: "prerouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: from.AsSlice()},
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.DelTable(table)
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
	})
}
