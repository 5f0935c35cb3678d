package cni

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

// ownList uses gantry-bridge with further keys, on the node's own bridge.
func (n *node) ownList(name, keys string) {
	n.t.Helper()
	n.write("10-"+name+".conflist", `{"cniVersion":"1.1.0","name":"`+name+`","plugins":[{"type":"gantry-bridge","bridge":"`+n.cfg.Bridge+`",`+keys+`}]}`)
	n.uses(name)
}

// routesOf are the routes of the pod's eth0 in all tables, without the kernel's own.
func routesOf(t *testing.T, pod Pod) (routes []string) {
	t.Helper()
	inNS(t, pod.NetNS, func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			all, err := netlink.RouteListFiltered(family, &netlink.Route{LinkIndex: eth.Attrs().Index, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			for _, r := range all {
				if r.Protocol == unix.RTPROT_KERNEL || r.Table == unix.RT_TABLE_LOCAL {
					continue
				}
				s := fmt.Sprintf("%s via %s table %d scope %d", r.Dst, r.Gw, r.Table, r.Scope)
				if r.Priority != 0 && !(family == unix.AF_INET6 && r.Priority == 1024) { // IPv6's default
					s += fmt.Sprint(" priority ", r.Priority)
				}
				if r.MTU+r.AdvMSS != 0 {
					s += fmt.Sprint(" mtu ", r.MTU, " advmss ", r.AdvMSS)
				}
				routes = append(routes, s)
			}
		}
		return nil
	})
	slices.Sort(routes)
	return routes
}

func TestRoutes(t *testing.T) {
	if !apart(t) {
		return
	}
	const dualRanges = `"ranges":[[{"subnet":"10.213.9.0/24","rangeStart":"10.213.9.100","rangeEnd":"10.213.9.101","gateway":"10.213.9.254"}],
		[{"subnet":"fd00:2139::/64","rangeStart":"fd00:2139::a","rangeEnd":"fd00:2139::b"}]]`
	for _, c := range []struct {
		name, keys string
		want       []string
	}{
		{"default", ``, []string{"0.0.0.0/0 via 10.213.9.254 table 254 scope 0", "::/0 via fd00:2139::1 table 254 scope 0"}},
		{"instead", `,"routes":[{"dst":"192.0.2.0/24"},{"dst":"2001:db8::/32","gw":"fd00:2139::7"}]`,
			[]string{"192.0.2.0/24 via 10.213.9.254 table 254 scope 0", "2001:db8::/32 via fd00:2139::7 table 254 scope 0"}},
		{"beside", `,"isDefaultGateway":true,"routes":[{"dst":"192.0.2.0/24","gw":"10.213.9.7"}]`, []string{"0.0.0.0/0 via 10.213.9.254 table 254 scope 0",
			"192.0.2.0/24 via 10.213.9.7 table 254 scope 0", "::/0 via fd00:2139::1 table 254 scope 0"}},
		{"own-default", `,"isDefaultGateway":true,"routes":[{"dst":"0.0.0.0/0","gw":"10.213.9.7"}]`,
			[]string{"0.0.0.0/0 via 10.213.9.7 table 254 scope 0", "::/0 via fd00:2139::1 table 254 scope 0"}},
		{"none", `,"isDefaultGateway":false`, nil},
		{"fields", `,"routes":[{"dst":"192.0.2.0/24","mtu":1300,"advmss":1200,"priority":7,"table":100},{"dst":"198.51.100.0/24","scope":253},
			{"dst":"2001:db8::/32","mtu":1280,"priority":9}]`,
			[]string{"192.0.2.0/24 via 10.213.9.254 table 100 scope 0 priority 7 mtu 1300 advmss 1200", "198.51.100.0/24 via <nil> table 254 scope 253",
				"2001:db8::/32 via fd00:2139::1 table 254 scope 0 priority 9 mtu 1280 advmss 0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			n.ownList(c.name, dualRanges+c.keys)
			for _, last := range []string{"10.213.9.100 fd00:2139::a", "10.213.9.101 fd00:2139::b"} {
				pod := n.pod()
				result, err := n.Attach(n.ctx, pod)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { n.detach(pod) })
				if got := strings.Trim(fmt.Sprint(result.IPs), "[]"); got != last {
					t.Errorf("addresses %s, want %s", got, last)
				}
				if got := routesOf(t, pod); !slices.Equal(got, c.want) {
					t.Errorf("routes\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
				}
			}
			if _, err := n.Attach(n.ctx, n.pod()); err == nil {
				t.Error("a third pod has an address of two")
			}
		})
	}
}

// TestAddressesAreUsable finds no address that still waits for the detection of duplicates, right after Attach.
func TestAddressesAreUsable(t *testing.T) {
	n := newNode(t, dual)
	pod := n.pod()
	n.attach(pod)
	check := func(link string, least int) error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(l, unix.AF_UNSPEC)
		if err != nil {
			return err
		}
		global := 0
		for _, a := range addrs {
			if l.Type() == "bridge" && a.IP.IsLinkLocalUnicast() {
				continue // the kernel's, which nothing uses
			}
			global++
			if a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED|unix.IFA_F_OPTIMISTIC) != 0 || a.IP.To4() == nil && a.Flags&unix.IFA_F_NODAD == 0 {
				t.Errorf("%s: address %s has flags %#x", link, a.IPNet, a.Flags)
			}
		}
		if global < least {
			t.Errorf("%s has addresses %v, want %d", link, addrs, least)
		}
		return nil
	}
	inNS(t, pod.NetNS, func() error { return check("eth0", 3) })
	if err := check(n.cfg.Bridge, 2); err != nil {
		t.Error(err)
	}
}

// TestMTU has the same on the bridge and both ends of every pod's link, also when the daemon starts again while the
// bridge has no pods, and when the configuration changes.
func TestMTU(t *testing.T) {
	n := newNode(t)
	same := func(pod Pod, want int) {
		t.Helper()
		for _, name := range []string{n.cfg.Bridge, bridge.HostLink(pod.ID)} {
			if l, err := netlink.LinkByName(name); err != nil || l.Attrs().MTU != want {
				t.Errorf("%s: %v, want MTU %d", name, err, want)
			}
		}
		inNS(t, pod.NetNS, func() error {
			l, err := netlink.LinkByName("eth0")
			if err == nil && l.Attrs().MTU != want {
				t.Errorf("eth0 has MTU %d, want %d", l.Attrs().MTU, want)
			}
			return err
		})
	}
	for _, mtu := range []int{9000, 1400, 1500} {
		keys := fmt.Sprintf(`"subnets":["10.213.9.0/24"],"mtu":%d`, mtu)
		n.ownList("x", keys)
		inForce := func() bool {
			l, err := n.list()
			return err == nil && strings.Contains(string(l.Bytes), keys)
		}
		eventually(t, "the list with the MTU is in force", inForce)
		for range 2 {
			pod := n.pod()
			n.attach(pod)
			same(pod, mtu)
			n.detach(pod)
			dropNS(t, pod.NetNS)
			eventually(t, "the pod's link is gone", func() bool {
				_, err := netlink.LinkByName(bridge.HostLink(pod.ID))
				return err != nil
			})
			n.restart()
		}
	}
	for _, refused := range []int{575, 65536, -1} {
		if _, err := parseList([]byte(fmt.Sprintf(`{"cniVersion":"1.1.0","name":"x","plugins":[{"type":"gantry-bridge","subnets":["10.0.0.0/8"],"mtu":%d}]}`, refused))); err == nil {
			t.Errorf("mtu %d is accepted", refused)
		}
	}
}
