package conntrack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Port is a host port of a pod, of one address family.
type Port struct {
	Protocol byte           // unix.IPPROTO_UDP, _SCTP; others are passed over
	Host     netip.AddrPort // an unspecified address is every one of the node
	Target   netip.AddrPort // the pod's
}

// maxQueries is how many dumps are worth their walk through the table; for more ports one dump of all flows of their
// protocols is cheaper.
const maxQueries = 4

// Unpublished forgets the flows that go to pods through host ports which have just been taken away. ErrNotImplemented
// where the kernel has no conntrack to ask.
func Unpublished(ports []Port) (int, error) {
	return forget(ports, func(e entry, p Port) bool {
		return e.reply == p.Target && to(e, p)
	})
}

// Published forgets the flows to host ports, just given to pods, that go elsewhere: to nothing, as they did before.
// Flows through the node to the same port of another host are none of them. ErrNotImplemented as for Unpublished.
func Published(ports []Port) (int, error) {
	var own map[netip.Addr]bool
	var failed error
	n, err := forget(ports, func(e entry, p Port) bool {
		if e.reply == p.Target || !to(e, p) {
			return false
		}
		if own == nil && failed == nil {
			own, failed = nodeAddrs()
		}
		return own[e.orig.Addr()] || e.orig.Addr().IsLoopback()
	})
	return n, errors.Join(err, failed)
}

// to tells whether a flow was sent to the host port.
func to(e entry, p Port) bool {
	return e.protocol == p.Protocol && e.orig.Port() == p.Host.Port() && e.orig.Addr().Is4() == p.Target.Addr().Is4() &&
		(p.Host.Addr().IsUnspecified() || p.Host.Addr() == e.orig.Addr())
}

func family(p Port) byte {
	if p.Target.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Concerned are those of the ports whose flows are ever forgotten.
func Concerned(ports []Port) []Port {
	return slices.DeleteFunc(slices.Clone(ports), func(p Port) bool { return p.Protocol != unix.IPPROTO_UDP && p.Protocol != unix.IPPROTO_SCTP })
}

// forget deletes the entries that match one of the ports. It goes on behind an error and returns all.
func forget(ports []Port, match func(entry, Port) bool) (deleted int, err error) {
	ports = Concerned(ports)
	if len(ports) == 0 {
		return 0, nil
	}
	var queries []query
	for _, p := range ports {
		if q := (query{family(p), p.Protocol, p.Host.Port()}); !slices.Contains(queries, q) {
			queries = append(queries, q)
		}
	}
	if len(queries) > maxQueries {
		for i, q := range queries {
			queries[i] = query{q.family, q.protocol, 0}
		}
		slices.SortFunc(queries, query.compare)
		queries = slices.Compact(queries)
	}
	s, err := open()
	if err != nil {
		return 0, fmt.Errorf("asking for flows to host ports: %w", err)
	}
	defer s.close()
	for _, q := range queries {
		entries, derr := s.dump(q)
		if errors.Is(derr, unix.EINVAL) || errors.Is(derr, unix.EOPNOTSUPP) { // what nfnetlink says of a subsystem that it has not
			return deleted, fmt.Errorf("the kernel cannot list flows (%w), load nf_conntrack_netlink: %w", derr, errdefs.ErrNotImplemented)
		}
		if derr != nil {
			err = errors.Join(err, fmt.Errorf("listing flows to host ports: %w", derr))
			continue
		}
		for _, e := range entries {
			if !slices.ContainsFunc(ports, func(p Port) bool { return match(e, p) }) {
				continue
			}
			switch derr := s.delete(e); {
			case derr == nil:
				deleted++
			case !errors.Is(derr, unix.ENOENT): // it ended by itself
				err = errors.Join(err, fmt.Errorf("deleting the flow to host port %s: %w", e.orig, derr))
			}
		}
	}
	return deleted, err
}

// nodeAddrs are the node's own addresses.
func nodeAddrs() (map[netip.Addr]bool, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("listing the node's addresses: %w", err)
	}
	own := map[netip.Addr]bool{}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own[p.Addr().Unmap()] = true
		}
	}
	return own, nil
}
