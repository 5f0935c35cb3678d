package ipam

import (
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"
)

// Range is a run of addresses of one subnet. First to Last are handed out, without the gateway.
type Range struct {
	Subnet      netip.Prefix // masked
	First, Last netip.Addr
	Gateway     netip.Addr
}

// NewRange fills what is zero in first, last and gateway: the gateway is the first usable address, the range is
// everything usable. Network and broadcast addresses (IPv6: the subnet-router anycast address) are not usable.
func NewRange(subnet netip.Prefix, first, last, gateway netip.Addr) (Range, error) {
	if !subnet.IsValid() || subnet.Addr().Is4In6() {
		return Range{}, fmt.Errorf("subnet %q: %w", subnet, errdefs.ErrInvalidArgument)
	}
	subnet = subnet.Masked()
	if bits := subnet.Addr().BitLen() - subnet.Bits(); bits < 2 {
		return Range{}, fmt.Errorf("subnet %s has no room for a gateway and a pod, use /%d or larger: %w",
			subnet, subnet.Addr().BitLen()-2, errdefs.ErrInvalidArgument)
	}
	if subnet.Addr().IsMulticast() || subnet.Addr().IsLoopback() || subnet.Addr().IsLinkLocalUnicast() ||
		subnet.Addr().IsUnspecified() {
		return Range{}, fmt.Errorf("subnet %s is not of unicast addresses: %w", subnet, errdefs.ErrInvalidArgument)
	}
	low, high := subnet.Addr().Next(), lastAddr(subnet)
	if low.Is4() {
		high = high.Prev()
	}
	for _, f := range []struct {
		addr  *netip.Addr
		whole netip.Addr
		name  string
	}{{&gateway, low, "gateway"}, {&first, low, "rangeStart"}, {&last, high, "rangeEnd"}} {
		if !f.addr.IsValid() {
			*f.addr = f.whole
		}
		if f.addr.Less(low) || high.Less(*f.addr) || f.addr.Zone() != "" {
			return Range{}, fmt.Errorf("%s %s is not a usable address of subnet %s: %w",
				f.name, f.addr, subnet, errdefs.ErrInvalidArgument)
		}
	}
	if last.Less(first) || (first == last && first == gateway) {
		return Range{}, fmt.Errorf("range %s-%s of subnet %s is empty: %w", first, last, subnet, errdefs.ErrInvalidArgument)
	}
	return Range{Subnet: subnet, First: first, Last: last, Gateway: gateway}, nil
}

func (r Range) String() string { return r.First.String() + "-" + r.Last.String() }

// lastAddr is the highest address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
