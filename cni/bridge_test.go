package cni

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// listen answers every connection to address within the namespace ("" = the node) with who asks, until the test ends.
func listen(tb testing.TB, ns, network, address string) netip.AddrPort {
	tb.Helper()
	var closer io.Closer
	var at string
	open := func() error {
		if strings.HasPrefix(network, "udp") {
			c, err := net.ListenPacket(network, address)
			if err != nil {
				return err
			}
			closer, at = c, c.LocalAddr().String()
			go func() {
				buf := make([]byte, 64)
				for {
					_, from, err := c.ReadFrom(buf)
					if err != nil {
						return
					}
					_, _ = c.WriteTo([]byte(from.String()+"\n"), from)
				}
			}()
			return nil
		}
		l, err := net.Listen(network, address)
		if err != nil {
			return err
		}
		closer, at = l, l.Addr().String()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.(*net.TCPConn).SetLinger(0) // see ask
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				_, _ = c.Read(make([]byte, 1))
				fmt.Fprintln(c, c.RemoteAddr())
				_, _ = c.Read(make([]byte, 1)) // until the other end is closed
				c.Close()
			}
		}()
		return nil
	}
	if ns == "" {
		if err := open(); err != nil {
			tb.Fatal(err)
		}
	} else {
		inNS(tb, ns, open)
	}
	tb.Cleanup(func() { closer.Close() })
	return netip.MustParseAddrPort(at)
}

// ask connects from a namespace ("" = the node) and returns the address that the listener saw.
func ask(tb testing.TB, ns, network string, to netip.AddrPort, wait time.Duration) (from netip.Addr, err error) {
	tb.Helper()
	dial := func() error {
		c, derr := (&net.Dialer{Timeout: wait, FallbackDelay: -1}).DialContext(context.Background(), network, to.String())
		if derr != nil {
			err = derr
			return nil
		}
		defer c.Close()
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // the end that is under way when a link goes would keep the namespace for minutes
		}
		_ = c.SetDeadline(time.Now().Add(wait))
		_, _ = c.Write([]byte("x"))
		line, derr := bufio.NewReader(c).ReadString('\n')
		if derr != nil {
			err = derr
			return nil
		}
		from = netip.MustParseAddrPort(strings.TrimSpace(line)).Addr().Unmap()
		return nil
	}
	if ns == "" {
		_ = dial()
	} else {
		inNS(tb, ns, dial)
	}
	return from, err
}

// reaches requires an answer, and that it was asked from the address, if one is given.
func reaches(tb testing.TB, ns, network string, to netip.AddrPort, as netip.Addr) {
	tb.Helper()
	from, err := ask(tb, ns, network, to, time.Minute)
	if err != nil {
		tb.Errorf("%s %s: %v", network, to, err)
	} else if as.IsValid() && from != as {
		tb.Errorf("%s %s was asked from %s, want %s", network, to, from, as)
	}
}

func at(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }

func dual(c *Config) { c.Subnets = append(c.Subnets, netip.MustParsePrefix("fd00:213::/64")) }

func TestPodsAndNodeReachEachOther(t *testing.T) {
	n := newNode(t, dual)
	a, b := n.pod(), n.pod()
	got, err := n.Attach(n.ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.detach(a) })
	n.attach(b)
	if len(got.IPs) != 2 || !got.IPs[0].Is4() || !got.IPs[1].Is6() {
		t.Fatalf("addresses %v, want one of each family, IPv4 first", got.IPs)
	}
	gateways := []netip.Addr{netip.MustParseAddr("10.213.0.1"), netip.MustParseAddr("fd00:213::1")}
	for i, ip := range got.IPs {
		listen(t, a.NetNS, "tcp", at(ip, 80).String())
		reaches(t, b.NetNS, "tcp", at(ip, 80), netip.Addr{}) // pod to pod
		reaches(t, "", "tcp", at(ip, 80), gateways[i])       // node to pod
		node := listen(t, "", "tcp", at(gateways[i], 0).String())
		reaches(t, a.NetNS, "tcp", node, ip) // pod to node, with its own address
		reaches(t, a.NetNS, "tcp", at(ip, 80), ip)
	}
	loopback := listen(t, a.NetNS, "tcp", "127.0.0.1:0")
	reaches(t, a.NetNS, "tcp", loopback, netip.MustParseAddr("127.0.0.1"))
}

// outside makes a namespace that is another host: its link to the node carries 203.0.113.0/24 (node .1, host .2) and
// 2001:db8:213::/64 alike. The other host knows no way to pods.
func outside(t *testing.T) (ns string, node, host [2]netip.Addr) {
	t.Helper()
	ns = newNS(t)
	node = [2]netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:213::1")}
	host = [2]netip.Addr{netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8:213::2")}
	f, err := os.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	name := fmt.Sprintf("out%d", os.Getpid()%100000)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "up0", PeerNamespace: netlink.NsFd(f.Fd())}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(veth) })
	up := func(name string, addrs [2]netip.Addr) error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		a4, _ := netlink.ParseAddr(addrs[0].String() + "/24")
		a6, _ := netlink.ParseAddr(addrs[1].String() + "/64")
		a6.Flags = unix.IFA_F_NODAD
		return errors.Join(netlink.AddrAdd(l, a4), netlink.AddrAdd(l, a6), netlink.LinkSetUp(l))
	}
	if err := up(name, node); err != nil {
		t.Fatal(err)
	}
	inNS(t, ns, func() error { return up("up0", host) })
	return ns, node, host
}

// TestHostPortsIPv6 is TestHostPorts for what IPv6 has.
func TestHostPortsIPv6(t *testing.T) {
	n := newNode(t, dual)
	out, node, host := outside(t)
	client := n.pod()
	n.attach(client)
	pod := n.pod(PortMapping{Protocol: "TCP", HostPort: 18080, ContainerPort: 80}, PortMapping{Protocol: "UDP", HostPort: 18080, ContainerPort: 53},
		PortMapping{Protocol: "TCP", HostPort: 18081, ContainerPort: 80, HostIP: node[1]})
	n.attach(pod)
	listen(t, pod.NetNS, "tcp", "[::]:80")
	listen(t, pod.NetNS, "udp", "[::]:53")
	gateway := netip.MustParseAddr("fd00:213::1")
	for _, network := range []string{"tcp", "udp"} {
		reaches(t, out, network, at(node[1], 18080), host[1])
		reaches(t, "", network, at(node[1], 18080), netip.Addr{})
		reaches(t, client.NetNS, network, at(gateway, 18080), gateway)
		reaches(t, pod.NetNS, network, at(node[1], 18080), gateway)
		reaches(t, out, network, at(node[0], 18080), host[0])
	}
	reaches(t, out, "tcp", at(node[1], 18081), host[1])
	if _, err := ask(t, out, "tcp", at(node[0], 18081), time.Second); err == nil {
		t.Error("a port of one hostIP answers on another")
	}
	server := listen(t, out, "tcp", at(host[1], 0).String())
	reaches(t, client.NetNS, "tcp", server, node[1]) // masqueraded
	if _, err := ask(t, "", "tcp", at(netip.IPv6Loopback(), 18080), time.Minute); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("::1: %v, want connection refused at once", err)
	}
	bridge := netip.MustParseAddr("fe80::858:aff:fed5:1%eth0")
	if _, err := ask(t, client.NetNS, "tcp", at(bridge, 18080), time.Minute); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%s: %v, want connection refused at once", bridge, err)
	}
}

func TestHostPorts(t *testing.T) {
	n := newNode(t)
	out, nodes, hosts := outside(t)
	node, host := nodes[0], hosts[0]
	client := n.pod()
	n.attach(client)
	any4 := netip.Addr{}
	pod := n.pod(
		PortMapping{Protocol: "TCP", HostPort: 18080, ContainerPort: 80, HostIP: any4},
		PortMapping{Protocol: "UDP", HostPort: 18080, ContainerPort: 53, HostIP: any4},
		PortMapping{Protocol: "SCTP", HostPort: 18080, ContainerPort: 81},
		PortMapping{Protocol: "TCP", HostPort: 18081, ContainerPort: 80, HostIP: node},
		PortMapping{Protocol: "TCP", HostPort: 18082, ContainerPort: 80, HostIP: netip.MustParseAddr("127.0.0.1")},
		PortMapping{Protocol: "TCP", HostPort: 0, ContainerPort: 90},
	)
	ip := n.attach(pod)
	listen(t, pod.NetNS, "tcp", at(ip, 80).String())
	listen(t, pod.NetNS, "udp", at(ip, 53).String())
	gateway, local := netip.MustParseAddr("10.213.0.1"), netip.MustParseAddr("127.0.0.1")
	for _, network := range []string{"tcp", "udp"} {
		reaches(t, out, network, at(node, 18080), host)                // from outside, with its own address
		reaches(t, "", network, at(local, 18080), gateway)             // from the node's loopback
		reaches(t, "", network, at(node, 18080), netip.Addr{})         // from the node
		reaches(t, client.NetNS, network, at(gateway, 18080), gateway) // from another pod
		reaches(t, client.NetNS, network, at(node, 18080), gateway)
		reaches(t, pod.NetNS, network, at(node, 18080), gateway) // from itself
	}
	reaches(t, out, "tcp", at(node, 18081), host)
	reaches(t, "", "tcp", at(local, 18082), gateway)
	for _, wrong := range []netip.AddrPort{at(local, 18081), at(node, 18082)} {
		if _, err := ask(t, "", "tcp", wrong, time.Second); err == nil {
			t.Errorf("%s answers, but belongs to another hostIP", wrong)
		}
	}
	// Pod traffic that leaves has the node's address; what stays has the pod's.
	server := listen(t, out, "tcp", at(host, 0).String())
	reaches(t, client.NetNS, "tcp", server, node)
	n.detach(pod)
	if _, err := ask(t, "", "tcp", at(local, 18080), time.Minute); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("host port of a detached pod: %v, want connection refused", err)
	}
}

func TestHostPortTaken(t *testing.T) {
	n := newNode(t)
	ip := netip.MustParseAddr("192.0.2.9")
	first := n.pod(PortMapping{Protocol: "tcp", HostPort: 18090, ContainerPort: 80, HostIP: ip})
	n.attach(first)
	for _, m := range []PortMapping{{Protocol: "tcp", HostPort: 18090, ContainerPort: 80}, {Protocol: "TCP", HostPort: 18090, ContainerPort: 81, HostIP: ip}} {
		pod := n.pod(PortMapping{Protocol: "tcp", HostPort: 18091, ContainerPort: 80}, m)
		if _, err := n.Attach(n.ctx, pod); !errors.Is(err, errdefs.ErrAlreadyExists) || !strings.Contains(err.Error(), "pod test/"+first.Name+" ("+first.ID) {
			t.Errorf("%v: %v, want an error that names the holder %s", m, err, first.ID)
		}
	}
	for _, m := range []PortMapping{{Protocol: "udp", HostPort: 18090, ContainerPort: 80},
		{Protocol: "tcp", HostPort: 18090, ContainerPort: 80, HostIP: netip.MustParseAddr("192.0.2.10")}} {
		n.attach(n.pod(m))
	}
	n.restart()
	if _, err := n.Attach(n.ctx, n.pod(PortMapping{Protocol: "tcp", HostPort: 18090, ContainerPort: 80})); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("after a restart: %v, want already exists", err)
	}
	n.detach(first)
	n.detach(first) // again is no error
}

// TestManyAtOnce attaches and detaches pods by 16 workers; no address serves two of them.
func TestManyAtOnce(t *testing.T) {
	if !apart(t) {
		return
	}
	n := newNode(t)
	const pods, workers = 100, 16
	queue := make(chan Pod, pods)
	for i := range pods {
		queue <- n.pod(PortMapping{Protocol: "tcp", HostPort: uint16(19000 + i), ContainerPort: 80})
	}
	close(queue)
	var mu sync.Mutex
	used := map[netip.Addr]string{}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for pod := range queue {
				result, err := n.Attach(n.ctx, pod)
				if err != nil {
					t.Error(err)
					continue
				}
				mu.Lock()
				if other, taken := used[result.IPs[0]]; taken {
					t.Errorf("%s was given to %s and to %s", result.IPs[0], other, pod.Name)
				}
				used[result.IPs[0]] = pod.Name
				mu.Unlock()
				if err := n.Detach(n.ctx, pod); err != nil {
					t.Error(err)
				}
				dropNS(t, pod.NetNS)
			}
		})
	}
	wg.Wait()
}

func TestAddressesRunOut(t *testing.T) {
	n := newNode(t, func(c *Config) { c.Subnets = []netip.Prefix{netip.MustParsePrefix("10.213.0.0/29")} })
	first := n.pod()
	freed := n.attach(first)
	for range 4 {
		n.attach(n.pod())
	}
	if _, err := n.Attach(n.ctx, n.pod()); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "10.213.0.1-10.213.0.6") {
		t.Errorf("%v, want an error that names the range", err)
	}
	n.detach(first)
	dropNS(t, first.NetNS)
	again := n.pod()
	if ip := n.attach(again); ip != freed {
		t.Errorf("got %s, want the freed %s", ip, freed)
	}
	// The new pod answers at once, though the old one had the address and the hardware address.
	listen(t, again.NetNS, "tcp", at(freed, 80).String())
	reaches(t, "", "tcp", at(freed, 80), netip.Addr{})
}

// TestReuseWhileOldNamespaceLives gives an address on although the old pod's namespace does not go.
func TestReuseWhileOldNamespaceLives(t *testing.T) {
	if !apart(t) {
		return
	}
	n := newNode(t, func(c *Config) { c.Subnets = []netip.Prefix{netip.MustParsePrefix("10.213.0.0/30")} })
	old := n.pod()
	ip := n.attach(old)
	listen(t, old.NetNS, "tcp", at(ip, 80).String())
	reaches(t, "", "tcp", at(ip, 80), netip.Addr{})
	n.detach(old)
	if _, err := ask(t, "", "tcp", at(ip, 80), time.Second); err == nil {
		t.Error("a detached pod answers")
	}
	next := n.pod()
	if got := n.attach(next); got != ip {
		t.Fatalf("got %s, want %s", got, ip)
	}
	listen(t, next.NetNS, "tcp", at(ip, 80).String())
	reaches(t, "", "tcp", at(ip, 80), netip.Addr{})
}

// TestKilled kills the daemon at several places (what it leaves on disk and in the kernel is made so) and collects.
func TestKilled(t *testing.T) {
	n := newNode(t)
	live, dead, half, lost := n.pod(), n.pod(PortMapping{Protocol: "tcp", HostPort: 18095, ContainerPort: 80}), n.pod(), n.pod()
	ip := n.attach(live)
	n.attach(dead)
	n.attach(half)
	n.attach(lost)
	if err := os.Remove(filepath.Join(n.cfg.StateDir, "results/gantry-"+half.ID+"-eth0")); err != nil { // killed before it was written
		t.Fatal(err)
	}
	for name, data := range map[string]string{ // another record is lost, others are cut short or damaged
		"attachments":            `{"k":"` + lost.ID + `"}` + "\n" + `{"k":"x","v":{"version":9}}` + "\n" + `{"k":"y","v"`,
		"networks/gantry/leases": `{"k":"10.213.0.200","v":"nobody"}` + "\n" + `{"k":"` + ip.String() + `"`,
		"ports":                  "\x00\x00\n",
		"networks/gantry/x.new":  "{",
	} {
		f, err := os.OpenFile(filepath.Join(n.cfg.StateDir, name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(data); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	n.restart()
	for range 2 { // the second has nothing to do
		if err := n.GC(n.ctx, []string{live.ID}); err != nil {
			t.Fatal(err)
		}
	}
	if addresses, ports := n.bridge.InUse(); addresses != 1 || ports != 0 {
		t.Errorf("%d leases and %d host ports are left, want the live pod's one lease", addresses, ports)
	}
	listen(t, live.NetNS, "tcp", at(ip, 80).String())
	reaches(t, "", "tcp", at(ip, 80), netip.Addr{})
	if got := n.attach(n.pod(PortMapping{Protocol: "tcp", HostPort: 18095, ContainerPort: 80})); got == ip {
		t.Error("the live pod's address was handed out again")
	}
	for _, f := range []string{"attachments.damaged", "ports.damaged", "networks/gantry/x.new"} {
		if err := os.Remove(filepath.Join(n.cfg.StateDir, f)); err != nil { // set aside
			t.Error(err)
		}
	}
}

// TestFlushedRules removes the table and the bridge behind the daemon's back.
func TestFlushedRules(t *testing.T) {
	n := newNode(t)
	pod := n.pod(PortMapping{Protocol: "tcp", HostPort: 18096, ContainerPort: 80})
	ip := n.attach(pod)
	listen(t, pod.NetNS, "tcp", at(ip, 80).String())
	deleteTable(t, n.cfg.Table)
	n.attach(n.pod(PortMapping{Protocol: "tcp", HostPort: 18097, ContainerPort: 80})) // finds it and writes all anew
	local := netip.MustParseAddr("127.0.0.1")
	reaches(t, "", "tcp", at(local, 18096), netip.Addr{})
	deleteTable(t, n.cfg.Table)
	n.restart()
	if err := n.GC(n.ctx, []string{pod.ID}); err != nil {
		t.Fatal(err)
	}
	reaches(t, "", "tcp", at(local, 18096), netip.Addr{})
	bridge, err := netlink.LinkByName(n.cfg.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	n.attach(n.pod())
	if err := netlink.LinkDel(bridge); err != nil {
		t.Fatal(err)
	}
	last := n.pod()
	ip = n.attach(last)
	listen(t, last.NetNS, "tcp", at(ip, 80).String())
	reaches(t, "", "tcp", at(ip, 80), netip.Addr{})
}
