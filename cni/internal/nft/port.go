package nft

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/cni/internal/conntrack"
)

// Port is one host port of a pod, of one address family.
type Port struct {
	Protocol string         `json:"protocol"` // tcp, udp or sctp
	HostIP   netip.Addr     `json:"hostIP"`   // unspecified = every address of the node of that family
	HostPort uint16         `json:"hostPort"`
	Target   netip.AddrPort `json:"target"` // the pod's
}

func (p Port) String() string {
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.HostIP, p.HostPort), p.Protocol)
}

// check finds what Publish and the kernel cannot serve.
func (p Port) check() error {
	if protocolNumber(p.Protocol) == 0 {
		return fmt.Errorf("host port %s: protocol %q is none of tcp, udp, sctp: %w", p, p.Protocol, errdefs.ErrInvalidArgument)
	}
	if p.HostPort == 0 || p.Target.Port() == 0 || !p.HostIP.IsValid() || !p.Target.IsValid() ||
		p.HostIP.Is4() != p.Target.Addr().Is4() || p.HostIP.Zone() != "" || p.Target.Addr().Zone() != "" ||
		p.HostIP.Is4In6() || p.Target.Addr().Is4In6() {
		return fmt.Errorf("host port %s to %s is not possible: %w", p, p.Target, errdefs.ErrInvalidArgument)
	}
	return nil
}

func protocolNumber(protocol string) byte {
	switch protocol {
	case "tcp":
		return unix.IPPROTO_TCP
	case "udp":
		return unix.IPPROTO_UDP
	case "sctp":
		return unix.IPPROTO_SCTP
	}
	return 0
}

// flows is what package conntrack must know of ports.
func flows(ports []Port) []conntrack.Port {
	all := make([]conntrack.Port, len(ports))
	for i, p := range ports {
		all[i] = conntrack.Port{Protocol: protocolNumber(p.Protocol), Host: netip.AddrPortFrom(p.HostIP, p.HostPort), Target: p.Target}
	}
	return all
}

// podPorts is the record of a pod.
type podPorts struct {
	Name  string `json:"pod"` // namespace/name
	Ports []Port `json:"ports"`
	// ------ not saved ------
	gone bool // from the kernel's maps, or about to
}

func parsePorts(data []byte) (podPorts, error) {
	var r podPorts
	into := any(&r)
	if bytes.HasPrefix(data, []byte("[")) { // of a daemon that did not record the pod's name yet
		into = &r.Ports
	}
	if err := json.Unmarshal(data, into); err != nil {
		return r, err
	}
	for _, p := range r.Ports {
		if err := p.check(); err != nil {
			return r, err
		}
	}
	return r, nil
}
