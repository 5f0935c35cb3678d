package bridge

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/cni/internal/ipam"
)

// linkPrefix starts the name of the host end of every pod's veth.
const linkPrefix = "gt"

// HostLink is the name of the host end of the pod's veth: it follows from the id, so that it needs no record.
func HostLink(pod string) string {
	sum := sha256.Sum256([]byte(pod))
	return linkPrefix + hex.EncodeToString(sum[:])[:11]
}

// mac is the hardware address of the interface with an address. As it follows from the address, no neighbour's entry
// is ever wrong, whoever had the address before.
func mac(a netip.Addr) net.HardwareAddr {
	b := a.AsSlice()
	return slices.Concat(macPrefix, b[len(b)-4:])
}

// macPrefix starts the hardware addresses that mac makes. It is of the locally administered ones.
var macPrefix = net.HardwareAddr{0x0a, 0x58}

// veth is the pair of a pod.
type veth struct {
	host, pod string // interface names
	mac       net.HardwareAddr
	ns        int // descriptor of the pod's namespace
	mtu       int
	bridge    int // index
	hairpin   bool
	shape     *shaping // nil = no limits
	announce  bool
	sysctls   *podSysctls
}

// create makes the pair with the pod's end in the pod's namespace and the host's end on the bridge and up. The pod's
// end stays down for configure.
func (v *veth) create(host *rtnl) error {
	// The kernel makes a queue per processor, each with files in sysfs, unless told otherwise: a third of the time.
	// A veth has no lock for its queues to share, so one does.
	oneQueue := [2]*nl.RtAttr{u32(unix.IFLA_NUM_TX_QUEUES, 1), u32(unix.IFLA_NUM_RX_QUEUES, 1)}
	peer := nl.NewRtAttr(unix.NLA_F_NESTED|nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	for _, a := range []*nl.RtAttr{str(unix.IFLA_IFNAME, v.pod), u32(unix.IFLA_NET_NS_FD, uint32(v.ns)),
		nl.NewRtAttr(unix.IFLA_ADDRESS, v.mac), u32(unix.IFLA_MTU, uint32(v.mtu)), oneQueue[0], oneQueue[1]} {
		peer.AddChild(a)
	}
	create := request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, false),
		str(unix.IFLA_IFNAME, v.host), u32(unix.IFLA_MTU, uint32(v.mtu)), u32(unix.IFLA_MASTER, uint32(v.bridge)), oneQueue[0], oneQueue[1],
		nest(unix.IFLA_LINKINFO, str(unix.IFLA_INFO_KIND, "veth"), nest(unix.IFLA_INFO_DATA, peer)))
	// A second message, because a bridge port has options only once it is one.
	set := setUp(0, str(unix.IFLA_IFNAME, v.host))
	set[len(set)-1].AddData(nest(unix.IFLA_LINKINFO, str(unix.IFLA_INFO_SLAVE_KIND, "bridge"),
		nest(unix.IFLA_INFO_SLAVE_DATA, nl.NewRtAttr(unix.IFLA_BRPORT_MODE, nl.Uint8Attr(flag(v.hairpin))))))
	if v.shape != nil {
		return v.createShaped(host, create, set)
	}
	errs, err := host.do(append([]*nl.NetlinkRequest{create}, set...)...)
	if err != nil {
		return errors.Join(err, deleteLink(host, v.host))
	}
	if errs[0] != nil {
		return errs[0] // made nothing
	}
	if err := errors.Join(errs[1:]...); err != nil {
		return errors.Join(err, deleteLink(host, v.host))
	}
	return nil
}

// configure brings the pod's end and its loopback up with addresses and routes.
func (v *veth) configure(addrs []ipam.Address, routes []Route) error {
	var pod *rtnl
	err := inNamespace(v.ns, func() (err error) {
		// A neighbour must not become the pod's router (CVE-2020-10749).
		if err := v.sysctls.write("net/ipv6/conf/"+v.pod+"/accept_ra", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if v.announce {
			if err := v.announceChanges(); err != nil {
				return err
			}
		}
		pod, err = newRTNL()
		return err
	})
	if err != nil {
		return err
	}
	defer pod.close()
	link, err := getLink(pod, v.pod)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(addrs, func(a ipam.Address) bool { return a.Prefix.Addr().Is6() }) {
		addrs = append(slices.Clip(addrs), ipam.Address{Prefix: linkLocal(v.mac)})
	}
	reqs := append([]*nl.NetlinkRequest{loopbackUp()}, setUp(link.index)...)
	what := []string{"loopback up", v.pod + " up", v.pod + " up"}[:len(reqs)]
	for _, a := range addrs {
		reqs = append(reqs, addAddress(link.index, a.Prefix))
	}
	for _, r := range routes {
		reqs = append(reqs, r.add(link.index))
	}
	if v.announce {
		reqs = append(reqs, request(unix.RTM_NEWLINK, 0, ifinfo(link.index, false), nl.NewRtAttr(unix.IFLA_ADDRESS, v.mac)))
	}
	errs, err := pod.do(reqs...)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		what = append(what, "address "+a.Prefix.String())
	}
	for _, r := range routes {
		what = append(what, fmt.Sprintf("route to %s via %s", r.Dst, r.GW))
	}
	what = append(what, "announcing "+v.mac.String())
	for i, err := range errs {
		if err != nil {
			return fmt.Errorf("%s: %w", what[i], err)
		}
	}
	return nil
}

// announceChanges lets the pod's end tell its neighbours when its hardware address is set, which configure does once
// the addresses are there: an earlier pod may have had them with another one.
func (v *veth) announceChanges() error {
	err := v.sysctls.write("net/ipv4/conf/"+v.pod+"/arp_notify", "1")
	if v6 := v.sysctls.write("net/ipv6/conf/"+v.pod+"/ndisc_notify", "1"); !errors.Is(v6, fs.ErrNotExist) {
		err = errors.Join(err, v6)
	}
	return err
}

// linkLocal is the IPv6 address that follows from a hardware address (RFC 4291, appendix A).
func linkLocal(m net.HardwareAddr) netip.Prefix {
	a := netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
	return netip.PrefixFrom(a, 64)
}

// setUp sets a link up, of that number or with the attribute that has its name, and keeps the kernel from giving it an
// IPv6 address of its own, which it would announce and check for duplicates with packets to every pod on the bridge. What
// needs one gets linkLocal. By a request of its own, the one before the last: where both are in one the kernel sets
// the link up first. A veth without a carrier yet has no address then, unless the kernel is late to notice that.
func setUp(index int, name ...*nl.RtAttr) []*nl.NetlinkRequest {
	up := request(unix.RTM_NEWLINK, 0, ifinfo(index, true), name...)
	if !haveIPv6() {
		return []*nl.NetlinkRequest{up}
	}
	mode := nest(unix.IFLA_AF_SPEC, nest(unix.AF_INET6, nl.NewRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, nl.Uint8Attr(nl.IN6_ADDR_GEN_MODE_NONE))))
	return []*nl.NetlinkRequest{request(unix.RTM_NEWLINK, 0, ifinfo(index, false), append(slices.Clip(name), mode)...), up}
}

// LoopbackUp is the plugin "loopback": lo of the namespace is up afterwards.
func LoopbackUp(netns string) error {
	f, err := openNamespace(netns)
	if err != nil {
		return err
	}
	defer f.Close()
	var errs []error
	err = inNamespace(int(f.Fd()), func() error {
		c, err := newRTNL()
		if err != nil {
			return err
		}
		defer c.close()
		errs, err = c.do(loopbackUp())
		return err
	})
	if err = errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("setting the loopback of %s up: %w", netns, err)
	}
	return nil
}

// loopbackUp relies on lo being the first interface of every namespace.
func loopbackUp() *nl.NetlinkRequest { return request(unix.RTM_NEWLINK, 0, ifinfo(1, true)) }

func flag(on bool) uint8 {
	if on {
		return 1
	}
	return 0
}

// disablePort makes the bridge forward nothing more from and to a link, and forget what it learnt there. An absent
// link is no error. The message is the bridge's own: a link message would make it look at the carrier afterwards and
// enable the port again.
func disablePort(host *rtnl, name string) error {
	link, err := getLink(host, name)
	if err != nil {
		if errors.Is(err, errdefs.ErrNotFound) {
			return nil
		}
		return err
	}
	const stateDisabled = 0 // BR_STATE_DISABLED
	m := nl.NewIfInfomsg(unix.AF_BRIDGE)
	m.Index = int32(link.index)
	errs, err := host.do(request(unix.RTM_SETLINK, 0, m, nest(unix.IFLA_PROTINFO,
		nl.NewRtAttr(unix.IFLA_BRPORT_STATE, nl.Uint8Attr(stateDisabled)), nl.NewRtAttr(unix.IFLA_BRPORT_FLUSH, nil))))
	if err != nil {
		return err
	}
	return unlessAbsent(errs[0])
}

// deleteLink deletes a link. An absent one is no error.
func deleteLink(host *rtnl, name string) error {
	errs, err := host.do(request(unix.RTM_DELLINK, 0, ifinfo(0, false), str(unix.IFLA_IFNAME, name)))
	if err != nil {
		return err
	}
	return unlessAbsent(errs[0])
}

func unlessAbsent(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// linkInfo is what the kernel says of a link.
type linkInfo struct {
	name, kind         string
	index, mtu, master int
	group              uint32
	up                 bool
	mac                net.HardwareAddr
}

// getLink finds a link by name; ErrNotFound when there is none.
func getLink(c *rtnl, name string) (linkInfo, error) {
	return oneLink(c, name, request(unix.RTM_GETLINK, 0, ifinfo(0, false), str(unix.IFLA_IFNAME, name)))
}

func getLinkByIndex(c *rtnl, index int) (linkInfo, error) {
	return oneLink(c, fmt.Sprint("index ", index), request(unix.RTM_GETLINK, 0, ifinfo(index, false)))
}

func oneLink(c *rtnl, name string, req *nl.NetlinkRequest) (linkInfo, error) {
	links, err := links(c, req)
	if errors.Is(err, unix.ENODEV) || (err == nil && len(links) == 0) {
		return linkInfo{}, fmt.Errorf("link %s: %w", name, errdefs.ErrNotFound)
	}
	if err != nil {
		return linkInfo{}, fmt.Errorf("finding link %s: %w", name, err)
	}
	return links[0], nil
}

// listLinks lists the links of a bridge.
func listLinks(c *rtnl, bridge int) ([]linkInfo, error) {
	all, err := links(c, request(unix.RTM_GETLINK, unix.NLM_F_DUMP, ifinfo(0, false), u32(unix.IFLA_MASTER, uint32(bridge))))
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	var ports []linkInfo
	for _, l := range all { // older kernels do not filter
		if l.master == bridge {
			ports = append(ports, l)
		}
	}
	return ports, nil
}

func links(c *rtnl, req *nl.NetlinkRequest) ([]linkInfo, error) {
	msgs, errs, err := c.exchange([]*nl.NetlinkRequest{req})
	if err != nil {
		return nil, err
	}
	if errs[0] != nil {
		return nil, errs[0]
	}
	var out []linkInfo
	for _, m := range msgs {
		if m.Header.Type != unix.RTM_NEWLINK {
			continue
		}
		l, err := parseLink(m)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

func parseLink(m syscall.NetlinkMessage) (linkInfo, error) {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return linkInfo{}, errors.New("short link message")
	}
	info := nl.DeserializeIfInfomsg(m.Data)
	l := linkInfo{index: int(info.Index), up: info.Flags&unix.IFF_UP != 0}
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return l, err
	}
	for _, a := range attrs {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case unix.IFLA_IFNAME:
			l.name = nl.BytesToString(a.Value)
		case unix.IFLA_ADDRESS:
			l.mac = a.Value
		case unix.IFLA_MTU:
			l.mtu = int(nl.NativeEndian().Uint32(a.Value))
		case unix.IFLA_MASTER:
			l.master = int(nl.NativeEndian().Uint32(a.Value))
		case unix.IFLA_GROUP:
			l.group = nl.NativeEndian().Uint32(a.Value)
		case unix.IFLA_LINKINFO:
			inner, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return l, err
			}
			for _, i := range inner {
				if i.Attr.Type == unix.IFLA_INFO_KIND {
					l.kind = nl.BytesToString(i.Value)
				}
			}
		}
	}
	return l, nil
}

func haveIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}
