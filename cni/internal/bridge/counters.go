package bridge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Counters is what has gone through an interface since it was made.
type Counters struct {
	Name                                  string
	RxBytes, RxPackets, RxErrors, RxDrops uint64
	TxBytes, TxPackets, TxErrors, TxDrops uint64
}

// HostCounters tells the counters of all veths of the node by name, in one dump. On the host's end of a pod's veth
// what the pod sends is received: see [Counters.OtherEnd].
func (p *Plugin) HostCounters() (map[string]Counters, error) {
	all, err := counters(p.host, "veth")
	if err != nil {
		return nil, fmt.Errorf("reading the counters of links: %w", err)
	}
	out := make(map[string]Counters, len(all))
	for _, c := range all {
		out[c.Name] = c
	}
	return out, nil
}

// OtherEnd is the counters of a veth's other end, of that name there. The kernel counts a packet at both.
func (c Counters) OtherEnd(name string) Counters {
	return Counters{
		Name:    name,
		RxBytes: c.TxBytes, RxPackets: c.TxPackets, RxErrors: c.TxErrors, RxDrops: c.TxDrops,
		TxBytes: c.RxBytes, TxPackets: c.RxPackets, TxErrors: c.RxErrors, TxDrops: c.RxDrops,
	}
}

// NamespaceCounters tells the counters of every interface of a pinned network namespace, but of its loopback. It
// costs a switch of the namespace and back, a socket and a dump.
func NamespaceCounters(netns string) ([]Counters, error) {
	f, err := openNamespace(netns)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var c *rtnl
	if err := inNamespace(int(f.Fd()), func() (err error) { c, err = newRTNL(); return err }); err != nil {
		return nil, err
	}
	defer c.close()
	all, err := counters(c, "")
	if err != nil {
		return nil, fmt.Errorf("reading the counters of namespace %s: %w", netns, err)
	}
	return all, nil
}

// counters reads those of all links of a kind, "" of all but the loopback.
func counters(c *rtnl, kind string) ([]Counters, error) {
	req := request(unix.RTM_GETLINK, unix.NLM_F_DUMP, ifinfo(0, false))
	if kind != "" {
		req.AddData(nest(unix.IFLA_LINKINFO, str(unix.IFLA_INFO_KIND, kind)))
	}
	msgs, errs, err := c.exchange([]*nl.NetlinkRequest{req})
	if err = errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	var out []Counters
	for _, m := range msgs {
		if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg {
			continue
		}
		if nl.DeserializeIfInfomsg(m.Data).Flags&unix.IFF_LOOPBACK == 0 {
			out = append(out, parseCounters(m.Data[unix.SizeofIfInfomsg:]))
		}
	}
	return out, nil
}

// parseCounters reads the attributes of a link message (rtnetlink(7)); what is missing is zero.
func parseCounters(attrs []byte) (c Counters) {
	for len(attrs) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(attrs))
		kind := binary.NativeEndian.Uint16(attrs[2:])
		if size < unix.SizeofRtAttr || size > len(attrs) {
			return c
		}
		value := attrs[unix.SizeofRtAttr:size]
		switch kind {
		case unix.IFLA_IFNAME:
			c.Name = string(bytes.TrimRight(value, "\x00"))
		case unix.IFLA_STATS64: // struct rtnl_link_stats64, pairs of received and sent
			for i, p := range []*uint64{&c.RxPackets, &c.TxPackets, &c.RxBytes, &c.TxBytes, &c.RxErrors, &c.TxErrors, &c.RxDrops, &c.TxDrops} {
				if len(value) >= 8*(i+1) {
					*p = binary.NativeEndian.Uint64(value[8*i:])
				}
			}
		}
		attrs = attrs[min((size+3)&^3, len(attrs)):]
	}
	return c
}
