package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images/peer"
)

// do runs f in the pod's network namespace with all capabilities, as a hostile pod with CAP_NET_ADMIN and CAP_NET_RAW
// may.
func (p *pod) do(f func() error) error {
	return harness.InNamespace(filepath.Join(p.Dir, "run/pods", p.id, "ns/net"), f)
}

// advertise sends a router advertisement to all neighbours, with a prefix to make addresses of.
func advertise(prefix netip.Addr) error {
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
		return err
	}
	const lifetime = 1800 // seconds
	m := []byte{134, 0, 0, 0, 64, 0}
	m = binary.BigEndian.AppendUint16(m, lifetime) // as the default router
	m = append(m, make([]byte, 8)...)              // RFC 4861, 4.2: reachable time, retransmission
	m = append(m, 3, 4, 64, 0xc0)                  // 4.6.2: /64, on the link, for autoconfiguration
	m = binary.BigEndian.AppendUint32(m, lifetime)
	m = binary.BigEndian.AppendUint32(m, lifetime)
	m = append(append(m, 0, 0, 0, 0), prefix.AsSlice()...)
	return unix.Sendto(fd, m, 0, &unix.SockaddrInet6{Addr: netip.IPv6LinkLocalAllNodes().As16(), ZoneId: uint32(link.Index)})
}

// counter reads a counter of IPv6 in the network namespace of the calling thread.
func counter(name string) (count int, err error) {
	counters, err := os.ReadFile("/proc/thread-self/net/snmp6")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(counters)) {
		if n, _ := fmt.Sscanf(line, name+" %d", &count); n == 1 {
			return count, nil
		}
	}
	return 0, fmt.Errorf("no counter %s", name)
}

// CVE-2020-10749: no pod becomes the router of another pod or of the node by advertising itself.
func TestSecurityRouterAdvertisement(t *testing.T) {
	n := newNode(t, harness.Config{Subnets: dual})
	attacker, victim := n.pod("attacker"), n.pod("victim")
	here := func(f func() error) error { return f() }
	for name, in := range map[string]func(func() error) error{"pod": victim.do, "node": here} {
		seen := func() (count int) {
			must(t, in(func() (err error) { count, err = counter("Icmp6InRouterAdvertisements"); return err }))
			return count
		}
		before := seen()
		n.eventually("the "+name+" has received the advertisement", func() bool {
			must(t, attacker.do(func() error { return advertise(netip.MustParseAddr("2001:db8:bad::")) }))
			return seen() > before // from its link-local address, which is a new pod's after a moment
		})
		must(t, in(func() error {
			routes, err := harness.Dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, unix.AF_INET6) })
			for _, r := range routes {
				if r.Protocol == unix.RTPROT_RA {
					t.Errorf("the %s has got the route %s", name, r)
				}
			}
			return err
		}))
		must(t, in(func() error {
			addrs, err := harness.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, unix.AF_INET6) })
			for _, a := range addrs {
				if netip.MustParsePrefix("2001:db8:bad::/64").Contains(netip.MustParseAddr(a.IP.String())) {
					t.Errorf("the %s has got the address %s", name, a)
				}
			}
			return err
		}))
	}
}

// CVE-2020-8558: what listens on the node's loopback is open neither to pods nor to neighbours, though the bridge has
// route_localnet.
func TestSecurityNodeLoopback(t *testing.T) {
	out, fromOutside := outside(t)
	n := newNode(t, harness.Config{Subnets: dual})
	p := n.pod("attacker", ports(port(tcp, 18080, 80, "")))
	must(t, serve(t, "127.0.0.1:18092"))
	secret := []question{{"the node's loopback", "tcp", netip.MustParseAddrPort("127.0.0.1:18092"), peer.Silent}}
	expect(t, here, patience, []question{{"the node itself", "tcp", secret[0].to, "127.0.0.1"}})

	// far makes 127.0.0.1 an address behind a gateway.
	far := func(gateway, own netip.Addr) error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0); err != nil {
			return err
		}
		loopback, _ := netlink.ParseAddr("127.0.0.1/8")
		return errors.Join(netlink.AddrDel(lo, loopback), netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index,
			Dst: &net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(32, 32)}, Gw: gateway.AsSlice(), Src: own.AsSlice()}))
	}
	must(t, p.do(func() error {
		if err := far(netip.MustParseAddr("10.212.0.1"), p.ips()[0]); err != nil {
			return err
		}
		expect(t, here, impatience, secret)
		return nil
	}))
	must(t, out.Do(func() error { return far(out.Node[0], out.Host[0]) }))
	expect(t, fromOutside, impatience, secret)
}
