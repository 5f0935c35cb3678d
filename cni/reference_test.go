package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	bridge4  = `{BRIDGE,"ipam":{IPAM4}}`
	bridge6  = `{BRIDGE,"ipam":{IPAM6}}`
	portmap  = `{"type":"portmap","snat":true,"capabilities":{"portMappings":true}}`
	shaping  = `{"type":"bandwidth","capabilities":{"bandwidth":true}}`
	firewall = `{"type":"firewall","backend":"iptables"}`
	tuning   = `{"type":"tuning","dataDir":"DATA/tuning","sysctl":{"net.core.somaxconn":"777"},"mac":"c2:11:22:33:44:55","mtu":1400}`
	loopback = `{"type":"loopback"}`
	ptp      = `{"type":"ptp","ipam":{IPAM4}}` // with IPv6 it waits for duplicate-address detection
)

// TestReferencePlugins runs chains of the reference plugins from ADD to DEL: the pods' traffic flows, and nothing of
// them is left, whether DEL comes in order, twice, or after a restart with the pod's namespace gone.
func TestReferencePlugins(t *testing.T) {
	if !apart(t) {
		return
	}
	for name, c := range map[string]struct {
		version string
		plugins []string
		shows   func(t *testing.T, pod Pod, ips []netip.Addr) // beside that pods reach each other
		keepNS  string                                        // why DEL has the namespace
		check   string                                        // why CHECK is left out
	}{
		"bridge 0.3.1":     {"0.3.1", []string{bridge4}, nil, "", "0.3.1 has none"},
		"bridge 0.4.0":     {"0.4.0", []string{bridge6}, nil, "", ""},
		"masquerade":       {"1.0.0", []string{`{BRIDGE,"ipMasq":true,"ipam":{IPAM6}}`}, reachesOutside, "bridge 1.1.1 reads there which rules to remove", ""},
		"host ports 0.3.1": {"0.3.1", []string{bridge4, portmap}, hostPorts, "", "0.3.1 has none"},
		"bandwidth":        {"1.0.0", []string{bridge6, shaping}, shaped, "", bandwidthCheck},
		"firewall":         {"0.4.0", []string{bridge6, firewall}, forwarded, "", ""},
		"tuning":           {"1.0.0", []string{ptp, tuning}, tuned, "tuning 1.1.1 removes its file only then", ""},
		"all":              {"1.0.0", []string{bridge6, loopback, portmap, shaping, firewall}, hostPorts, "", bandwidthCheck},
		"ptp":              {"1.0.0", []string{ptp, portmap}, hostPorts, "", portmapCheck},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReference(t)
			r.chain(c.version, c.plugins...)
			before := r.used()
			a := r.pod(PortMapping{Protocol: "TCP", HostPort: 18201, ContainerPort: 80}, PortMapping{Protocol: "UDP", HostPort: 18201, ContainerPort: 53})
			a.Annotations = limits
			b := r.pod()
			got, err := r.Attach(r.ctx, a)
			if err != nil {
				t.Fatal(err)
			}
			to, err := r.Attach(r.ctx, b)
			if err != nil {
				t.Fatal(err)
			}
			t.Run("traffic", func(t *testing.T) { // whose sockets hold the namespaces
				reachEachOther(t, a, b, got, to)
				if c.shows != nil {
					c.shows(t, a, got.IPs)
				}
			})
			r.check(a, c.check)
			list, rt := r.records.get(a.ID).list, r.records.get(a.ID).runtimeConf(a.ID, a.NetNS)
			r.detach(a)
			r.detach(a)
			if err := r.libcni.DelNetworkList(r.ctx, list, rt); err != nil { // as after a crash before the record went
				t.Errorf("DEL again: %v", err)
			}
			r.restart()
			r.check(b, c.check)
			if c.keepNS == "" {
				dropNS(t, b.NetNS)
			} else {
				t.Log("DEL without the namespace is left out: " + c.keepNS)
			}
			r.detach(b)
			r.leaves(before)
		})
	}
}

const (
	portmapCheck   = "portmap 1.1.1 fails for a pod with ports of one family, and mixes up those of two"
	bandwidthCheck = "bandwidth 1.1.1 crashes for a pod without limits"
)

// check runs the chain's CHECK.
func (r *reference) check(pod Pod, leftOut string) {
	r.t.Helper()
	if leftOut != "" {
		r.t.Log("CHECK is left out: " + leftOut)
		return
	}
	a := r.records.get(pod.ID)
	if err := r.libcni.CheckNetworkList(r.ctx, a.list, a.runtimeConf(pod.ID, pod.NetNS)); err != nil {
		r.t.Errorf("CHECK: %v", err)
	}
}

func reachEachOther(t *testing.T, a, b Pod, ofA, ofB Result) {
	t.Helper()
	for i, ip := range ofB.IPs {
		listen(t, b.NetNS, "tcp", at(ip, 80).String())
		reaches(t, a.NetNS, "tcp", at(ip, 80), ofA.IPs[i])
	}
}

func hostPorts(t *testing.T, pod Pod, ips []netip.Addr) {
	out, node, host := outside(t)
	listen(t, pod.NetNS, "tcp", "[::]:80")
	listen(t, pod.NetNS, "udp", "[::]:53")
	for _, network := range []string{"tcp", "udp"} {
		for i := range ips {
			reaches(t, out, network, at(node[i], 18201), host[i])
			reaches(t, "", network, at(node[i], 18201), netip.Addr{})
		}
		reaches(t, "", network, at(netip.MustParseAddr("127.0.0.1"), 18201), netip.Addr{})
	}
}

func reachesOutside(t *testing.T, pod Pod, ips []netip.Addr) {
	out, node, host := outside(t)
	for i := range ips {
		listen(t, out, "tcp", at(host[i], 80).String())
		reaches(t, pod.NetNS, "tcp", at(host[i], 80), node[i])
	}
}

// forwarded shows that the plugin lets through what the node else drops.
func forwarded(t *testing.T, pod Pod, ips []netip.Addr) {
	policy := func(verdict string) {
		for _, program := range []string{"iptables", "ip6tables"} {
			if out, err := exec.Command(program, "-P", "FORWARD", verdict).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", program, err, out)
			}
		}
	}
	out, node, host := outside(t)
	policy("DROP")
	defer policy("ACCEPT")
	inNS(t, out, func() error { // the other host knows the way to pods
		return errors.Join(netlink.RouteAdd(&netlink.Route{Dst: prefix("10.214.0.0/24"), Gw: node[0].AsSlice()}),
			netlink.RouteAdd(&netlink.Route{Dst: prefix("fd00:214::/64"), Gw: node[1].AsSlice()}))
	})
	for i, ip := range ips {
		listen(t, out, "tcp", at(host[i], 80).String())
		reaches(t, pod.NetNS, "tcp", at(host[i], 80), ip)
	}
}

// shaped shows the queues that the rates were given to, in bytes per second: of the pod's link and of the plugin's ifb.
func shaped(t *testing.T, _ Pod, _ []netip.Addr) {
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var rates []uint64
	for _, l := range links {
		qdiscs, err := netlink.QdiscList(l)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range qdiscs {
			if tbf, ok := q.(*netlink.Tbf); ok {
				rates = append(rates, tbf.Rate)
			}
		}
	}
	slices.Sort(rates)
	if !slices.Equal(rates, []uint64{30e6 / 8, 40e6 / 8}) {
		t.Errorf("queues of %d bytes per second, want those of 30 and 40 Mbit/s", rates)
	}
}

func tuned(t *testing.T, pod Pod, _ []netip.Addr) {
	inNS(t, pod.NetNS, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		somaxconn, err := os.ReadFile("/proc/sys/net/core/somaxconn")
		if l.Attrs().HardwareAddr.String() != "c2:11:22:33:44:55" || l.Attrs().MTU != 1400 || strings.TrimSpace(string(somaxconn)) != "777" {
			t.Errorf("address %v, MTU %d, somaxconn %s", l.Attrs().HardwareAddr, l.Attrs().MTU, somaxconn)
		}
		return err
	})
}

// TestReferenceChainIsUndone has the last plugin fail after all others have made what is theirs: at once, and after a
// restart when DEL failed at first. The firewall plugin's DEL finds its rules by the result.
func TestReferenceChainIsUndone(t *testing.T) {
	if !apart(t) {
		return
	}
	r := newReference(t)
	r.install("testplugin")
	all := []string{bridge6, portmap, shaping, firewall, tuning}
	r.chain("1.0.0", all...)
	before := r.used()
	pod := r.pod(PortMapping{Protocol: "TCP", HostPort: 18202, ContainerPort: 80})
	pod.Annotations = limits
	for _, do := range []string{`{"ADD":"error"}`, `{"ADD":"error","DEL":"error"}`} {
		r.chain("1.0.0", append(all, `{"type":"testplugin","do":`+do+`}`)...)
		if _, err := r.Attach(r.ctx, pod); err == nil || !strings.Contains(err.Error(), "no luck with ADD") {
			t.Errorf("%v, want the last plugin's error", err)
		}
		if strings.Contains(do, "DEL") {
			if slices.Equal(r.state(), before) {
				t.Error("all is undone though DEL fails")
			}
			r.restart()
			r.remove("testplugin")
			r.script("testplugin", "")
			r.detach(pod)
		}
		r.leaves(before)
	}
	r.chain("1.0.0", all...)
	if _, err := r.Attach(r.ctx, pod); err != nil { // and the namespace is as new
		t.Error(err)
	}
	r.detach(pod)
	r.leaves(before)
}

// TestReferenceVersion refuses a pod before anything of it is made: firewall does not know 0.3.1, in DEL neither.
func TestReferenceVersion(t *testing.T) {
	r := newReference(t)
	r.chain("0.3.1", bridge4, firewall)
	before := r.state()
	if _, err := r.Attach(r.ctx, r.pod()); err == nil || !strings.Contains(err.Error(), "firewall knows the versions 0.4.0, 1.0.0 of CNI, not 0.3.1") {
		t.Errorf("%v, want the versions", err)
	}
	r.leaves(before)
}

// TestReferenceMacvlan has pods on the node's own wire.
func TestReferenceMacvlan(t *testing.T) {
	r := newReference(t)
	_, _, _ = outside(t)
	master := fmt.Sprintf("out%d", os.Getpid()%100000)
	l, err := netlink.LinkByName(master)
	if err != nil {
		t.Fatal(err)
	}
	probe := &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "gttmv0", ParentIndex: l.Attrs().Index}, Mode: netlink.MACVLAN_MODE_BRIDGE}
	if err := netlink.LinkAdd(probe); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("this kernel has no macvlan; that of hack/test-vm.sh has")
	} else if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(probe); err != nil {
		t.Fatal(err)
	}
	r.chain("1.0.0", `{"type":"macvlan","master":"`+master+`","mode":"bridge","ipam":{IPAM4}}`)
	before := r.used()
	a, b := r.pod(), r.pod()
	got, err := r.Attach(r.ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	to, err := r.Attach(r.ctx, b)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("traffic", func(t *testing.T) { reachEachOther(t, a, b, got, to) })
	r.check(a, "")
	r.detach(a)
	r.restart()
	dropNS(t, b.NetNS)
	r.detach(b)
	r.leaves(before)
}

func prefix(s string) *net.IPNet {
	_, n, _ := net.ParseCIDR(s)
	return n
}
