package bridge

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// MinBurst is the least burst of a limit, in bits. A token bucket passes no packet at once that is larger than its
// burst, and TCP hands packets of up to 64 KiB to a veth, which count with a header for each segment.
const MinBurst = 80 << 10 * 8

// queueTime is how long a packet waits at most behind a limit, in addition to the time of its burst, before the queue
// is full and drops: 50 ms, which is what a TCP connection across a continent needs to use the whole rate.
const queueTime = 50 // ms

// Bandwidth is the capability of that name: rates in bits per second, 0 = no limit, and bursts in bits.
type Bandwidth struct {
	IngressRate, IngressBurst, EgressRate, EgressBurst uint64 // as the pod sees it
}

func (b Bandwidth) check() error {
	for _, l := range []struct {
		direction   string
		rate, burst uint64
	}{{"ingress", b.IngressRate, b.IngressBurst}, {"egress", b.EgressRate, b.EgressBurst}} {
		switch {
		case l.rate == 0 && l.burst == 0:
		case l.rate < 8 || l.rate > 1e15:
			return fmt.Errorf("%sRate %d is not 8-1e15 bits per second: %w", l.direction, l.rate, errdefs.ErrInvalidArgument)
		case l.burst < MinBurst || l.burst/8 > math.MaxUint32:
			return fmt.Errorf("%sBurst %d is not %d-%d bits: %w", l.direction, l.burst, MinBurst, uint64(math.MaxUint32)*8, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// shaping is what limits a pod's bandwidth on the node's side, where no capability in the pod reaches it. What the pod
// receives leaves the host's end of the veth through a token bucket. What it sends arrives there, where nothing can
// wait: it is redirected to a link of its own kind (ifb), waits in a token bucket there and goes on as if it had just
// arrived. Packets of every protocol count.
type shaping struct {
	Bandwidth
	ifb string
}

// ifbLink is the name of a pod's ifb. The first part is the instance's, so that Sweep takes no other's; both follow
// from what is known, so that a link needs no record.
func (p *Plugin) ifbLink(pod string) string {
	sum := sha256.Sum256([]byte(pod))
	return p.ifbPrefix + hex.EncodeToString(sum[:])[:9]
}

// instance is what tells the ifbs and bridges of this instance from others': the start of the ifbs' names, the group in
// which they are deleted, and that of the bridges. The table's name is unique on the node.
func instance(table string) (prefix string, ifbs, bridges uint32) {
	sum := sha256.Sum256([]byte(table))
	// People number theirs from 1 on.
	return "gi" + hex.EncodeToString(sum[:])[:4], binary.BigEndian.Uint32(sum[:]) | owned, binary.BigEndian.Uint32(sum[4:]) | owned
}

// createShaped is the rest of create for a pod with limits. Two sends: the second needs the numbers of the first's
// links. The queues are made while the links are down, since the kernel waits for a grace period to replace those of
// a link that is up. It leaves nothing when it fails.
func (v *veth) createShaped(host *rtnl, create *nl.NetlinkRequest, set []*nl.NetlinkRequest) error {
	made, err := v.createBoth(host, create, set)
	if err == nil {
		return nil
	}
	if made {
		err = errors.Join(err, deleteLink(host, v.host))
	}
	if v.shape.EgressRate > 0 {
		err = errors.Join(err, deleteLink(host, v.shape.ifb))
	}
	return err
}

func (v *veth) createBoth(host *rtnl, create *nl.NetlinkRequest, set []*nl.NetlinkRequest) (made bool, err error) {
	s := v.shape
	reqs, names := []*nl.NetlinkRequest{create, byName(v.host)}, []string{v.host, v.host}
	if s.EgressRate > 0 {
		reqs = append(reqs, request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, false), str(unix.IFLA_IFNAME, s.ifb),
			u32(unix.IFLA_MTU, uint32(v.mtu)), nest(unix.IFLA_LINKINFO, str(unix.IFLA_INFO_KIND, "ifb"))), byName(s.ifb))
		names = append(names, s.ifb, s.ifb)
	}
	msgs, errs, err := host.exchange(reqs)
	if err != nil {
		return true, err // that is not known
	}
	if errs[0] != nil {
		return false, errs[0]
	}
	index := map[string]int{}
	for _, m := range msgs {
		l, err := parseLink(m)
		if err != nil {
			return true, err
		}
		index[l.name] = l.index
	}
	for i, err := range errs {
		if err != nil {
			return true, fmt.Errorf("link %s for its limits: %w", names[i], err)
		}
	}
	reqs, what := s.requests(index[v.host], index[s.ifb])
	for range set {
		what = append(what, "setting it up")
	}
	if errs, err = host.do(append(reqs, set...)...); err != nil {
		return true, err
	}
	for i, what := range what {
		if errs[i] != nil {
			return true, fmt.Errorf("%s: %w", what, errs[i])
		}
	}
	return true, nil
}

// requests make the queues on both links and set the ifb up.
func (s *shaping) requests(veth, ifb int) (reqs []*nl.NetlinkRequest, what []string) {
	if s.IngressRate > 0 {
		reqs, what = append(reqs, tbf(veth, s.IngressRate, s.IngressBurst)), append(what, "limiting ingress (tbf)")
	}
	if s.EgressRate > 0 {
		reqs, what = append(reqs, tbf(ifb, s.EgressRate, s.EgressBurst)), append(what, "limiting egress (tbf)")
		for _, up := range setUp(ifb) {
			reqs, what = append(reqs, up), append(what, "setting "+s.ifb+" up")
		}
		reqs, what = append(reqs, ingressQdisc(veth), redirect(veth, ifb)), append(what, "limiting egress (ingress)", "limiting egress (u32, mirred)")
	}
	return reqs, what
}

// tbf is a token bucket as the root queue of a link. The burst goes as TCA_TBF_BURST, in bytes: the field of Linux
// before 3.13 counts it in the scheduler's ticks, of which 32 bits are too few for a low rate.
func tbf(link int, rate, burst uint64) *nl.NetlinkRequest {
	rate, burst = rate/8, burst/8
	const linklayerEthernet = 1 // else the kernel wants a table of sizes to guess it from
	parms := nl.TcTbfQopt{Rate: nl.TcRateSpec{Linklayer: linklayerEthernet, Rate: uint32(min(rate, math.MaxUint32))},
		Limit: uint32(min(burst+rate/1000*queueTime, math.MaxUint32))}
	attrs := []*nl.RtAttr{nl.NewRtAttr(nl.TCA_TBF_PARMS, parms.Serialize()), u32(nl.TCA_TBF_BURST, uint32(burst))}
	if rate > math.MaxUint32 {
		attrs = append(attrs, nl.NewRtAttr(nl.TCA_TBF_RATE64, nl.Uint64Attr(rate)))
	}
	m := &nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(link), Handle: 1 << 16, Parent: math.MaxUint32} // TC_H_ROOT
	return request(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, m, str(nl.TCA_KIND, "tbf"), nest(nl.TCA_OPTIONS, attrs...))
}

const ingressHandle = 0xffff << 16

func ingressQdisc(link int) *nl.NetlinkRequest {
	const parent = 0xfffffff1 // TC_H_INGRESS
	m := &nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(link), Handle: ingressHandle, Parent: parent}
	return request(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, m, str(nl.TCA_KIND, "ingress"))
}

// redirect sends everything that arrives on a link to the queue of another. The classifier is u32 with a key that
// every packet matches: matchall says the same with less, but not every kernel has it.
func redirect(from, to int) *nl.NetlinkRequest {
	const (
		priority  = 1
		stolen    = 4 // TC_ACT_STOLEN: the packet goes no further here
		egressRed = 1 // TCA_EGRESS_REDIR
		classID   = 1<<16 | 1
	)
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	m := &nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(from), Parent: ingressHandle, Info: priority<<16 | uint32(all)}
	sel := nl.TcU32Sel{Flags: nl.TC_U32_TERMINAL, Nkeys: 1, Keys: []nl.TcU32Key{{}}}
	var mirred []byte // struct tc_mirred
	for _, field := range []uint32{0, 0, stolen, 0, 0, egressRed, uint32(to)} {
		mirred = binary.NativeEndian.AppendUint32(mirred, field)
	}
	act := nest(1, str(nl.TCA_ACT_KIND, "mirred"), nest(nl.TCA_ACT_OPTIONS, nl.NewRtAttr(nl.TCA_MIRRED_PARMS, mirred)))
	return request(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_EXCL, m, str(nl.TCA_KIND, "u32"),
		nest(nl.TCA_OPTIONS, u32(nl.TCA_U32_CLASSID, classID), nl.NewRtAttr(nl.TCA_U32_SEL, sel.Serialize()), nest(nl.TCA_U32_ACT, act)))
}

func byName(link string) *nl.NetlinkRequest {
	return request(unix.RTM_GETLINK, 0, ifinfo(0, false), str(unix.IFLA_IFNAME, link))
}

// listIFBs are the names of this instance's.
func (p *Plugin) listIFBs() ([]string, error) {
	all, err := links(p.host, request(unix.RTM_GETLINK, unix.NLM_F_DUMP, ifinfo(0, false), nest(unix.IFLA_LINKINFO, str(unix.IFLA_INFO_KIND, "ifb"))))
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // a kernel without ifb
		return nil, fmt.Errorf("listing the links of bandwidth limits: %w", err)
	}
	var names []string
	for _, l := range all {
		if l.kind == "ifb" && strings.HasPrefix(l.name, p.ifbPrefix) && len(l.name) == len(p.ifbPrefix)+9 {
			names = append(names, l.name)
		}
	}
	return names, nil
}
