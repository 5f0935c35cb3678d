package conntrack

import (
	"cmp"
	"encoding/binary"
	"errors"
	"iter"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.
const (
	subsystem = 1 << 8 // NFNL_SUBSYS_CTNETLINK

	ctaFilter          = 25 // CTA_FILTER
	ctaFilterOrigFlags = 1

	filterProtocol = 1 << 3 // CTA_FILTER_F_CTA_PROTO_NUM
	filterDstPort  = 1 << 5 // CTA_FILTER_F_CTA_PROTO_DST_PORT
)

// query is what the kernel compares: it sends the flows of a family and a protocol that were sent to a port. Addresses
// are not compared there, because kernels (6.18 still) send all IPv6 addresses but the one that is asked for.
type query struct {
	family, protocol byte
	port             uint16 // 0 = any
}

func (q query) compare(o query) int {
	return cmp.Or(cmp.Compare(q.family, o.family), cmp.Compare(q.protocol, o.protocol))
}

// entry is a flow.
type entry struct {
	family, protocol byte
	orig             netip.AddrPort // where it was sent to
	reply            netip.AddrPort // where its answers come from: elsewhere, if it is NATed
	tuple, id, zone  []byte         // CTA_TUPLE_ORIG, CTA_ID and CTA_ZONE as the kernel sent them
}

// socket is used for one forget.
type socket struct{ handle nl.SocketHandle }

func open() (*socket, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	err = errors.Join(s.SetSendTimeout(&nl.SocketTimeoutTv), s.SetReceiveTimeout(&nl.SocketTimeoutTv))
	if err != nil {
		s.Close()
		return nil, err
	}
	return &socket{nl.SocketHandle{Socket: s}}, nil
}

func (s *socket) close() { s.handle.Socket.Close() }

func (s *socket) request(kind, flags int, family byte) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(subsystem|kind, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: &s.handle}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return req
}

func (s *socket) dump(q query) ([]entry, error) {
	req := s.request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, q.family)
	for _, a := range q.attributes() {
		req.AddData(a)
	}
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, err
	}
	var entries []entry
	for _, m := range msgs {
		if e, ok := parse(m); ok {
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// attributes give the kernel a tuple of the way there, and which of its parts count.
func (q query) attributes() []*nl.RtAttr {
	flags := uint32(filterProtocol)
	proto := nested(nl.CTA_TUPLE_PROTO)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{q.protocol})
	if q.port != 0 {
		flags |= filterDstPort
		proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, nl.BEUint16Attr(q.port))
	}
	orig, filter := nested(nl.CTA_TUPLE_ORIG), nested(ctaFilter)
	orig.AddChild(proto)
	filter.AddRtAttr(ctaFilterOrigFlags, nl.Uint32Attr(flags))
	return []*nl.RtAttr{orig, filter}
}

// delete deletes one entry; ENOENT when it is gone, or another one has its tuple.
func (s *socket) delete(e entry) error {
	req := s.request(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, e.family)
	req.AddData(nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, e.tuple))
	req.AddData(nl.NewRtAttr(nl.CTA_ID, e.id))
	if e.zone != nil {
		req.AddData(nl.NewRtAttr(nl.CTA_ZONE, e.zone))
	}
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return err
}

func nested(kind int) *nl.RtAttr { return nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil) }

// parse reads an entry, and refuses one without the parts that are needed.
func parse(msg []byte) (e entry, ok bool) {
	if len(msg) < nl.SizeofNfgenmsg {
		return e, false
	}
	e.family = msg[0]
	for kind, value := range attributes(msg[nl.SizeofNfgenmsg:]) {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			e.tuple = value
			_, e.orig, e.protocol = parseTuple(value)
		case nl.CTA_TUPLE_REPLY:
			e.reply, _, _ = parseTuple(value)
		case nl.CTA_ID:
			e.id = value
		case nl.CTA_ZONE:
			e.zone = value
		}
	}
	return e, e.orig.IsValid() && e.reply.IsValid() && e.tuple != nil && len(e.id) == 4
}

func parseTuple(tuple []byte) (src, dst netip.AddrPort, protocol byte) {
	var addrs [2]netip.Addr
	var ports [2]uint16
	for kind, value := range attributes(tuple) {
		for inner, v := range attributes(value) {
			switch {
			case kind == nl.CTA_TUPLE_IP && (inner == nl.CTA_IP_V4_SRC || inner == nl.CTA_IP_V6_SRC):
				addrs[0], _ = netip.AddrFromSlice(v)
			case kind == nl.CTA_TUPLE_IP && (inner == nl.CTA_IP_V4_DST || inner == nl.CTA_IP_V6_DST):
				addrs[1], _ = netip.AddrFromSlice(v)
			case kind == nl.CTA_TUPLE_PROTO && inner == nl.CTA_PROTO_NUM && len(v) == 1:
				protocol = v[0]
			case kind == nl.CTA_TUPLE_PROTO && inner == nl.CTA_PROTO_SRC_PORT && len(v) == 2:
				ports[0] = binary.BigEndian.Uint16(v)
			case kind == nl.CTA_TUPLE_PROTO && inner == nl.CTA_PROTO_DST_PORT && len(v) == 2:
				ports[1] = binary.BigEndian.Uint16(v)
			}
		}
	}
	return netip.AddrPortFrom(addrs[0], ports[0]), netip.AddrPortFrom(addrs[1], ports[1]), protocol
}

// attributes are the netlink attributes in b by kind; it ends at a broken one.
func attributes(b []byte) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			size := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if size < unix.SizeofNlAttr || size > len(b) || !yield(int(kind), b[unix.SizeofNlAttr:size:size]) {
				return
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}
