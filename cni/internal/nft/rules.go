package nft

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The registers of a concatenated key or value: every part starts at a 4-byte register.
const (
	reg0 = unix.NFT_REG32_00
	reg1 = reg0 + 1
	reg2 = reg0 + 2
	reg4 = reg0 + 4
	reg5 = reg0 + 5
	reg8 = reg0 + 8 // behind every key and value
)

// hostPortMark is the bit of a packet's mark that tells postrouting that the connection goes to a host port of this
// table: its status alone may say so of a service's, which is somebody else's to masquerade. The bits of kube-proxy
// (0x4000, 0x8000) and of the reference plugin portmap (0x2000) mean masquerade to others.
const hostPortMark = 0x1000

const ctStatusDNAT = 1 << 5 // IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h

// family is what differs between the IPv4 and the IPv6 half of the table.
type family struct {
	suffix           string
	proto            byte
	addr             nftables.SetDatatype
	saddrOff, addrSz uint32
	afterAddr        uint32         // register behind an address at reg0
	onLink           []netip.Prefix // multicast, broadcast, link-local: packets there never leave the bridge
}

var linkLocal6 = netip.MustParsePrefix("fe80::/10")

func families() [2]family {
	return [2]family{
		{"4", unix.NFPROTO_IPV4, nftables.TypeIPAddr, 12, 4, reg1,
			[]netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("255.255.255.255/32")}},
		{"6", unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 8, 16, reg4,
			[]netip.Prefix{netip.MustParsePrefix("ff00::/8"), linkLocal6}},
	}
}

// sets are the sets and maps of a table; index 0 is IPv4, 1 IPv6.
type sets struct {
	bridges            *nftables.Set
	pods, masq, direct [2]*nftables.Set
	ports, anyPorts    [2]*nftables.Set
}

func newSets(t *nftables.Table) sets {
	id := uint32(0)
	set := func(name string, key nftables.SetDatatype) *nftables.Set {
		id++ // ids are the batch's own; the library's counter is not safe for two tables at once
		return &nftables.Set{Table: t, ID: id, Name: name, KeyType: key}
	}
	s := sets{bridges: set("bridges", nftables.TypeIFName)}
	s.bridges.KeyByteOrder = binaryutil.NativeEndian // how nft shows names
	for i, f := range families() {
		s.pods[i], s.masq[i], s.direct[i] = set("pods"+f.suffix, f.addr), set("masq"+f.suffix, f.addr), set("direct"+f.suffix, f.addr)
		s.pods[i].Interval, s.masq[i].Interval, s.direct[i].Interval = true, true, true
		port := []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
		s.ports[i] = set("ports"+f.suffix, nftables.MustConcatSetType(f.addr, port[0], port[1]))
		s.anyPorts[i] = set("anyports"+f.suffix, nftables.MustConcatSetType(port...))
		for _, m := range []*nftables.Set{s.ports[i], s.anyPorts[i]} {
			m.IsMap, m.Concatenation = true, true
			m.DataType = nftables.MustConcatSetType(f.addr, nftables.TypeInetService)
		}
	}
	return s
}

func (s sets) all() []*nftables.Set {
	all := []*nftables.Set{s.bridges}
	for i := range 2 {
		all = append(all, s.pods[i], s.masq[i], s.direct[i], s.ports[i], s.anyPorts[i])
	}
	return all
}

// addRules puts the chains and rules of the package comment into the batch.
func addRules(c *nftables.Conn, t *nftables.Table, s sets, bridged bridgedHooks) {
	chain := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) func(...[]expr.Any) {
		ch := c.AddChain(&nftables.Chain{Table: t, Name: name, Type: typ, Hooknum: hook, Priority: prio})
		return func(parts ...[]expr.Any) {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: concat(parts...)})
		}
	}
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	fams := families()
	v4, v6 := fams[0], fams[1]

	guard := chain("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	guard(name(expr.MetaKeyIIFNAME, s.bridges), v4.is(), v4.within(v4.daddr(), loopback), verdict(expr.VerdictDrop))
	guard(name(expr.MetaKeyIIFNAME, s.bridges), v4.is(), v4.within(v4.saddr(), loopback), verdict(expr.VerdictDrop))

	host := chain("hostports", "", nil, nil)
	host(v6.is(), v6.within(v6.daddr(), netip.MustParsePrefix("::1/128")), verdict(expr.VerdictReturn))
	host(v6.is(), v6.within(v6.daddr(), linkLocal6), verdict(expr.VerdictReturn))
	for i, f := range fams {
		host(f.is(), f.load(f.daddr(), reg0), l4port(f.afterAddr), f.dnat(s.ports[i]))
		host(f.is(), l4port(reg0), f.dnat(s.anyPorts[i]))
	}
	jump := []expr.Any{
		&expr.Fib{Register: reg0, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
		&expr.Verdict{Kind: expr.VerdictJump, Chain: "hostports"},
	}
	chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)(jump)
	chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)(jump)

	post := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	masquerade := []expr.Any{&expr.Masq{}}
	toBridge := name(expr.MetaKeyOIFNAME, s.bridges)
	post(toBridge, dnatted(), v4.is(), v4.within(v4.saddr(), loopback), masquerade)
	for i, f := range fams {
		through := dnatted()
		if bridged[i] {
			through = marked()
		}
		post(toBridge, through, f.is(), f.in(f.saddr(), s.pods[i], false), f.in(f.daddr(), s.pods[i], false), masquerade)
		post(f.is(), f.in(f.saddr(), s.masq[i], false), f.in(f.daddr(), s.direct[i], true), masquerade)
	}
}

func concat(parts ...[]expr.Any) (all []expr.Any) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

// name matches the name of the incoming or outgoing interface against a set.
func name(key expr.MetaKey, s *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg0},
		&expr.Lookup{SourceRegister: reg0, SetName: s.Name, SetID: s.ID},
	}
}

// l4port loads the transport protocol and the destination port into a register and the one behind it.
func l4port(reg uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Payload{DestRegister: reg + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

func dnatted() []expr.Any {
	return hasBit(&expr.Ct{Key: expr.CtKeySTATUS, Register: reg0}, ctStatusDNAT)
}

func marked() []expr.Any {
	return hasBit(&expr.Meta{Key: expr.MetaKeyMARK, Register: reg0}, hostPortMark)
}

// hasBit matches one bit of what load puts at reg0.
func hasBit(load expr.Any, bit uint32) []expr.Any {
	zero := make([]byte, 4)
	return []expr.Any{
		load,
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bit), Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: zero},
	}
}

func (f family) is() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{f.proto}},
	}
}

func (f family) saddr() uint32 { return f.saddrOff }
func (f family) daddr() uint32 { return f.saddrOff + f.addrSz }

func (f family) load(offset, reg uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addrSz}}
}

// within matches an address against one prefix, in against a set of prefixes.
func (f family) within(offset uint32, p netip.Prefix) []expr.Any {
	mask := make([]byte, f.addrSz)
	for i := range p.Bits() {
		mask[i/8] |= 1 << (7 - i%8)
	}
	return append(f.load(offset, reg0),
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: f.addrSz, Mask: mask, Xor: make([]byte, f.addrSz)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: p.Masked().Addr().AsSlice()})
}

func (f family) in(offset uint32, s *nftables.Set, invert bool) []expr.Any {
	return append(f.load(offset, reg0), &expr.Lookup{SourceRegister: reg0, SetName: s.Name, SetID: s.ID, Invert: invert})
}

// dnat looks the key at reg0 up, marks the packet and goes to the address and port that the map has for the key.
func (f family) dnat(m *nftables.Set) []expr.Any {
	native := binaryutil.NativeEndian
	return []expr.Any{
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg8},
		&expr.Bitwise{SourceRegister: reg8, DestRegister: reg8, Len: 4, Mask: native.PutUint32(^uint32(hostPortMark)), Xor: native.PutUint32(hostPortMark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg8},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg0, RegProtoMin: f.afterAddr},
	}
}
