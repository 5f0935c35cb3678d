package conntrack

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ownNetwork moves the test to a network namespace of its own, whose only link is lo with 192.0.2.1 and 2001:db8::1.
// The test must not start goroutines that need it.
func ownNetwork(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			tb.Fatal("needs root to make a network namespace; CI must run it as root")
		}
		tb.Skip("needs root to make a network namespace")
	}
	runtime.LockOSThread()
	old, err := netns.Get()
	if err != nil {
		tb.Fatal(err)
	}
	ns, err := netns.New()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ns.Close()
		if err := netns.Set(old); err != nil {
			tb.Fatal(err) // the thread ends with the goroutine
		}
		old.Close()
		runtime.UnlockOSThread()
	})
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		tb.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		tb.Fatal(err)
	}
	for _, a := range []string{"192.0.2.1/32", "2001:db8::1/128"} {
		addr, _ := netlink.ParseAddr(a)
		if err := netlink.AddrAdd(lo, addr); err != nil {
			tb.Fatal(err)
		}
	}
}

var protocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// add makes an entry of a flow from a client to an address, which is answered from another.
func add(tb testing.TB, protocol, from, to, answers string) {
	tb.Helper()
	c, t, a := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to), netip.MustParseAddrPort(answers)
	tuple := func(src, dst netip.AddrPort) netlink.IPTuple {
		return netlink.IPTuple{Protocol: protocols[protocol], SrcIP: src.Addr().AsSlice(), SrcPort: src.Port(), DstIP: dst.Addr().AsSlice(), DstPort: dst.Port()}
	}
	flow := &netlink.ConntrackFlow{FamilyType: nl.FAMILY_V4, Forward: tuple(c, t), Reverse: tuple(a, c), TimeOut: 600}
	if c.Addr().Is6() {
		flow.FamilyType = nl.FAMILY_V6
	}
	if protocol == "tcp" {
		flow.ProtoInfo = &netlink.ProtoInfoTCP{State: nl.TCP_CONNTRACK_ESTABLISHED}
	}
	if err := netlink.ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(flow.FamilyType), flow); err != nil {
		tb.Fatalf("making a flow %s %s > %s: %v", protocol, from, to, err)
	}
}

// list lists all entries as "protocol to=answers", as the kernel's own table has them.
func list(tb testing.TB) []string {
	tb.Helper()
	data, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
	if err != nil {
		tb.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(data)) {
		fields := map[string][]string{} // of the way there and of the way back
		for _, f := range strings.Fields(line) {
			k, v, _ := strings.Cut(f, "=")
			fields[k] = append(fields[k], v)
		}
		at := func(addr, port string) netip.AddrPort {
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil {
				tb.Fatal(err)
			}
			return netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(n))
		}
		all = append(all, fmt.Sprintf("%s %s=%s", strings.Fields(line)[2], at(fields["dst"][0], fields["dport"][0]), at(fields["src"][1], fields["sport"][1])))
	}
	slices.Sort(all)
	return all
}

// flows of the tests: to=answers.
var (
	toPod    = []string{"udp 192.0.2.1:5353=10.1.0.2:53", "udp 127.0.0.1:5353=10.1.0.2:53", "sctp 192.0.2.1:5353=10.1.0.2:53", "udp [2001:db8::1]:5353=[fd00::2]:53"}
	toNobody = []string{"udp 192.0.2.1:5353=192.0.2.1:5353", "udp 127.0.0.1:5353=127.0.0.1:5353", "sctp 192.0.2.1:5353=192.0.2.1:5353", "udp [2001:db8::1]:5353=[2001:db8::1]:5353"}
	others   = []string{
		"udp 10.1.0.2:53=10.1.0.2:53",             // to the pod itself
		"udp 192.0.2.1:5354=10.1.0.2:53",          // another host port
		"udp 192.0.2.1:53=10.1.0.2:5353",          // ports the other way round
		"tcp 192.0.2.1:5353=10.1.0.2:53",          // no such protocol
		"udp 198.51.100.9:5353=198.51.100.9:5353", // through the node to another host
		"udp [2001:db8:9::9]:5353=[2001:db8:9::9]:5353",
	}
	published = []Port{port("udp", "0.0.0.0:5353", "10.1.0.2:53"), port("sctp", "0.0.0.0:5353", "10.1.0.2:53"),
		port("tcp", "0.0.0.0:5353", "10.1.0.2:53"), port("udp", "[::]:5353", "[fd00::2]:53")}
)

func port(protocol, host, target string) Port {
	return Port{protocols[protocol], netip.MustParseAddrPort(host), netip.MustParseAddrPort(target)}
}

func TestForget(t *testing.T) {
	many := slices.Clone(published) // so many that the kernel is asked for all flows of the protocols
	for i := range maxQueries {
		many = append(many, port("udp", fmt.Sprintf("0.0.0.0:%d", 7000+i), fmt.Sprintf("10.1.1.%d:53", i)))
	}
	elsewhere := "udp 192.0.2.1:5353=10.1.0.3:53" // to another pod
	for _, c := range []struct {
		name   string
		forget func([]Port) (int, error)
		ports  []Port
		gone   []string
		stay   []string
	}{
		{"unpublished", Unpublished, published, toPod, slices.Concat(others, []string{elsewhere})},
		{"unpublished many", Unpublished, many, toPod, slices.Concat(others, []string{elsewhere})},
		{"unpublished address", Unpublished, []Port{port("udp", "127.0.0.1:5353", "10.1.0.2:53")}, toPod[1:2], slices.Concat(others, toPod[:1])},
		{"unpublished tcp", Unpublished, published[2:3], nil, slices.Concat(others, toPod)},
		{"published", Published, published, toNobody, slices.Concat(others, toPod[1:])},
		{"published, of another", Published, published, []string{elsewhere}, slices.Concat(others, toPod)},
		{"published many", Published, many, toNobody, slices.Concat(others, toPod[1:])},
		{"published address", Published, []Port{port("udp", "192.0.2.1:5353", "10.1.0.2:53")}, toNobody[:1], slices.Concat(others, toNobody[1:])},
	} {
		t.Run(c.name, func(t *testing.T) {
			ownNetwork(t)
			for i, flow := range slices.Concat(c.gone, c.stay) {
				protocol, rest, _ := strings.Cut(flow, " ")
				to, answers, _ := strings.Cut(rest, "=")
				from := fmt.Sprintf("203.0.113.5:%d", 2000+i)
				if strings.HasPrefix(to, "[") {
					from = fmt.Sprintf("[2001:db8:5::5]:%d", 2000+i)
				}
				add(t, protocol, from, to, answers)
			}
			n, err := c.forget(c.ports)
			if err != nil || n != len(c.gone) {
				t.Errorf("forgot %d flows, %v; want %d", n, err, len(c.gone))
			}
			want := slices.Sorted(slices.Values(c.stay))
			if got := list(t); !slices.Equal(got, want) {
				t.Errorf("left:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// TestKernelFilters shows that the kernel sends what is asked for and no more (CTA_FILTER, Linux 5.8).
func TestKernelFilters(t *testing.T) {
	ownNetwork(t)
	for i := range 50 {
		add(t, "udp", fmt.Sprintf("203.0.113.5:%d", 2000+i), "192.0.2.1:5353", fmt.Sprintf("10.1.0.%d:53", i%2))
		add(t, "udp", fmt.Sprintf("203.0.113.5:%d", 3000+i), "192.0.2.1:5354", "10.1.0.1:53")
		add(t, "sctp", fmt.Sprintf("203.0.113.5:%d", 2000+i), "192.0.2.1:5353", "10.1.0.1:53")
	}
	add(t, "udp", "[2001:db8:5::5]:2000", "[2001:db8::1]:5353", "[fd00::2]:53")
	add(t, "udp", "[2001:db8:5::5]:2001", "[2001:db8::1]:5354", "[fd00::2]:53")
	s, err := open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for _, c := range []struct {
		q    query
		want int
	}{
		{query{unix.AF_INET, unix.IPPROTO_UDP, 5353}, 50},
		{query{unix.AF_INET, unix.IPPROTO_UDP, 0}, 100},
		{query{unix.AF_INET6, unix.IPPROTO_UDP, 5353}, 1},
		{query{unix.AF_INET6, unix.IPPROTO_SCTP, 0}, 0},
	} {
		if got, err := s.dump(c.q); err != nil || len(got) != c.want {
			t.Errorf("%+v: %d flows, %v; want %d", c.q, len(got), err, c.want)
		}
	}
}

// FuzzParse feeds messages of the kernel.
func FuzzParse(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 8, 0, 12, 0, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, msg []byte) {
		if e, ok := parse(msg); ok && len(e.id) != 4 {
			t.Errorf("%+v", e)
		}
	})
}

// BenchmarkUnpublished is the cost for a pod with one UDP port, with many flows of others in the kernel.
func BenchmarkUnpublished(b *testing.B) {
	for _, others := range []int{0, 20000} {
		b.Run(fmt.Sprintf("flows=%d", others), func(b *testing.B) {
			ownNetwork(b)
			for i := range others {
				add(b, "udp", fmt.Sprintf("203.0.%d.%d:2000", i/250, i%250), "192.0.2.1:5353", "10.1.0.9:53")
			}
			for b.Loop() {
				if _, err := Unpublished(published[:1]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
