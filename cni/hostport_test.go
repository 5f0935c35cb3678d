package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// echo answers every UDP packet in a namespace with a name, until the returned function is called.
func echo(tb testing.TB, ns, address, name string) (stop func()) {
	tb.Helper()
	var c net.PacketConn
	inNS(tb, ns, func() (err error) {
		c, err = net.ListenPacket("udp", address)
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(name), from)
		}
	}()
	return func() { c.Close(); <-done }
}

// udpClient is a client that keeps its port.
func udpClient(tb testing.TB, ns string, from, to netip.AddrPort) net.Conn {
	tb.Helper()
	var c net.Conn
	dial := func() (err error) {
		c, err = (&net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(from)}).DialContext(context.Background(), "udp", to.String())
		return err
	}
	if ns == "" {
		if err := dial(); err != nil {
			tb.Fatal(err)
		}
	} else {
		inNS(tb, ns, dial)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// hears sends once and returns the answer, if there is one soon.
func hears(c net.Conn, wait time.Duration) string {
	_, _ = c.Write([]byte("x")) // may tell that the packet before was refused
	_ = c.SetReadDeadline(time.Now().Add(wait))
	buf := make([]byte, 64)
	n, _ := c.Read(buf)
	return string(buf[:n])
}

func hearsOf(tb testing.TB, c net.Conn, want string) {
	tb.Helper()
	what := fmt.Sprintf("client %s of %s hears of %q", c.LocalAddr(), c.RemoteAddr(), want)
	eventually(tb, what, func() bool { return hears(c, 100*time.Millisecond) == want })
}

// flowsTo counts the kernel's UDP flows to a port of whatever address that another address answers.
func flowsTo(tb testing.TB, port uint16, ip netip.Addr) (flows int) {
	tb.Helper()
	data, err := os.ReadFile("/proc/net/nf_conntrack")
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		fields := map[string][]string{} // of the way there and of the way back
		for _, f := range strings.Fields(line) {
			k, v, _ := strings.Cut(f, "=")
			fields[k] = append(fields[k], v)
		}
		if fields["udp"] == nil || len(fields["src"]) != 2 || fields["dport"][0] != fmt.Sprint(port) {
			continue
		}
		if answers, err := netip.ParseAddr(fields["src"][1]); err == nil && answers == ip {
			flows++
		}
	}
	return flows
}

// TestUDPClientsFollow replaces the pod behind a UDP host port while clients that keep their port go on to send. Their
// flows go with the pod, so that who gets its address does not hear them, and those that they make in between go when
// the next pod comes.
func TestUDPClientsFollow(t *testing.T) {
	n := newNode(t, func(c *Config) { // with one address to give
		c.Subnets = []netip.Prefix{netip.MustParsePrefix("10.213.0.0/30"), netip.MustParsePrefix("fd00:213::/64")}
	})
	out, node, host := outside(t)
	mapping := PortMapping{Protocol: "UDP", HostPort: 18070, ContainerPort: 53}
	first := n.pod(mapping)
	result, err := n.Attach(n.ctx, first)
	if err != nil {
		t.Fatal(err)
	}
	stop := echo(t, first.NetNS, "[::]:53", "first")
	local := netip.MustParseAddr("127.0.0.1")
	clients := []net.Conn{
		udpClient(t, out, at(host[0], 18071), at(node[0], 18070)),
		udpClient(t, out, at(host[1], 18071), at(node[1], 18070)),
		udpClient(t, "", at(local, 18072), at(local, 18070)),
	}
	for _, c := range clients {
		hearsOf(t, c, "first")
	}
	n.detach(first)
	stop()
	dropNS(t, first.NetNS)
	for _, ip := range result.IPs {
		if got := flowsTo(t, 18070, ip); got != 0 {
			t.Errorf("%d flows go to %s, which is nobody's", got, ip)
		}
	}

	other := n.pod() // with the same address, and no host port
	if ip := n.attach(other); ip != result.IPs[0] {
		t.Fatalf("got %s, want %s", ip, result.IPs[0])
	}
	stop = echo(t, other.NetNS, "[::]:53", "other")
	for _, c := range clients {
		for range 3 {
			if got := hears(c, 20*time.Millisecond); got != "" {
				t.Errorf("client %s hears of %q, which has no host port", c.LocalAddr(), got)
			}
		}
	}
	stop()
	n.detach(other)
	dropNS(t, other.NetNS)

	next := n.pod(mapping)
	n.attach(next)
	t.Cleanup(echo(t, next.NetNS, "[::]:53", "next"))
	for _, c := range clients {
		hearsOf(t, c, "next")
	}
}

// TestUDPFlowsOfLostPods kills the daemon while a pod with a UDP host port goes: what is left is the record of its
// host ports. Its flows go with that at the next start.
func TestUDPFlowsOfLostPods(t *testing.T) {
	n := newNode(t)
	out, node, host := outside(t)
	pod := n.pod(PortMapping{Protocol: "UDP", HostPort: 18073, ContainerPort: 53})
	result, err := n.Attach(n.ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	stop := echo(t, pod.NetNS, "[::]:53", "pod")
	hearsOf(t, udpClient(t, out, at(host[0], 18074), at(node[0], 18073)), "pod")
	stop()
	if err := n.records.journal.Delete(pod.ID); err != nil { // the pod's DEL is said to be done
		t.Fatal(err)
	}
	if err := os.RemoveAll(n.cfg.StateDir + "/results"); err != nil {
		t.Fatal(err)
	}
	if got := flowsTo(t, 18073, result.IPs[0]); got != 1 {
		t.Errorf("%d flows go to the pod, want 1; this test shows nothing", got)
	}
	n.restart()
	if err := n.GC(n.ctx, nil); err != nil {
		t.Fatal(err)
	}
	if got := flowsTo(t, 18073, result.IPs[0]); got != 0 {
		t.Errorf("%d flows go to %s, which is nobody's", got, result.IPs[0])
	}
}

// TestFlowsThroughTheNode publishes a port to which another pod talks on another host: its flow stays.
func TestFlowsThroughTheNode(t *testing.T) {
	n := newNode(t)
	out, _, host := outside(t)
	client := n.pod()
	n.attach(client)
	t.Cleanup(echo(t, out, at(host[0], 18075).String(), "far"))
	c := udpClient(t, client.NetNS, netip.AddrPort{}, at(host[0], 18075))
	hearsOf(t, c, "far")
	before := flowsTo(t, 18075, host[0])
	pod := n.pod(PortMapping{Protocol: "UDP", HostPort: 18075, ContainerPort: 53})
	n.attach(pod)
	t.Cleanup(echo(t, pod.NetNS, "[::]:53", "near"))
	if after := flowsTo(t, 18075, host[0]); before != 1 || after != 1 {
		t.Errorf("%d flows to the far host before, %d after, want 1", before, after)
	}
	hearsOf(t, c, "far")
	hearsOf(t, udpClient(t, client.NetNS, netip.AddrPort{}, at(host[0], 18075)), "far") // a new one alike
}

// TestHostPortOfNode asks for ports that a process of the node has: it is not robbed of them.
func TestHostPortOfNode(t *testing.T) {
	n := newNode(t, dual)
	for _, network := range []string{"tcp", "udp"} {
		port := listen(t, "", network, "127.0.0.1:0").Port()
		pod := n.pod(PortMapping{Protocol: network, HostPort: port, ContainerPort: 80})
		_, err := n.Attach(n.ctx, pod)
		want := fmt.Sprintf("(pid %d), which listens on 127.0.0.1:%d", os.Getpid(), port)
		if !errors.Is(err, errdefs.ErrAlreadyExists) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q in it", network, err, want)
		}
		reaches(t, "", network, at(netip.MustParseAddr("127.0.0.1"), port), netip.MustParseAddr("127.0.0.1"))
		n.attach(n.pod(PortMapping{Protocol: network, HostPort: port, ContainerPort: 80, HostIP: netip.MustParseAddr("127.0.0.2")}))
	}
}

// TestUDPFlowsBeforeAKill leaves a flow of before the pod's ADD, as a daemon does that is killed before it has looked
// for those. It goes at the next start.
func TestUDPFlowsBeforeAKill(t *testing.T) {
	n := newNode(t)
	pod := n.pod(PortMapping{Protocol: "UDP", HostPort: 18076, ContainerPort: 53})
	n.attach(pod)
	if err := n.Networks.Close(); err != nil { // so that nothing is under way
		t.Fatal(err)
	}
	local, client := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.9")
	way := func(from netip.Addr, sport uint16, to netip.Addr, dport uint16) netlink.IPTuple {
		return netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: from.AsSlice(), SrcPort: sport, DstIP: to.AsSlice(), DstPort: dport}
	}
	flow := &netlink.ConntrackFlow{FamilyType: unix.AF_INET, Forward: way(client, 18077, local, 18076), Reverse: way(local, 18076, client, 18077), TimeOut: 600}
	if err := netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, flow); err != nil {
		t.Fatal(err)
	}
	n.open()
	if got := flowsTo(t, 18076, local); got != 1 {
		t.Errorf("%d flows go nowhere, want 1; this test shows nothing", got)
	}
	if err := n.GC(n.ctx, []string{pod.ID}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the flow that goes nowhere is gone", func() bool { return flowsTo(t, 18076, local) == 0 })
}
