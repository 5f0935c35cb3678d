package bridge

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/cni/internal/ipam"
	"github.com/gantry-cri/gantry/cni/internal/nft"
)

// PortMapping is one entry of the capability portMappings.
type PortMapping struct {
	Protocol      string
	HostIP        netip.Addr // zero = all addresses of both families
	HostPort      uint16
	ContainerPort uint16
}

type rawPort struct {
	HostPort, ContainerPort int
	Protocol, HostIP        string
}

func (r rawPort) parse() (PortMapping, error) {
	p := PortMapping{Protocol: strings.ToLower(r.Protocol)}
	if p.Protocol == "" {
		p.Protocol = "tcp"
	}
	if r.HostPort < 0 || r.HostPort > 65535 || r.ContainerPort < 1 || r.ContainerPort > 65535 {
		return p, fmt.Errorf("port mapping %d to %d is not within 1-65535: %w", r.HostPort, r.ContainerPort, errdefs.ErrInvalidArgument)
	}
	p.HostPort, p.ContainerPort = uint16(r.HostPort), uint16(r.ContainerPort)
	if r.HostIP != "" {
		addr, err := netip.ParseAddr(r.HostIP)
		if err != nil || addr.Zone() != "" {
			return p, fmt.Errorf("hostIP %q of host port %d is no address: %w", r.HostIP, r.HostPort, errdefs.ErrInvalidArgument)
		}
		p.HostIP = addr.Unmap()
		if p.HostIP == netip.IPv6Loopback() {
			return p, fmt.Errorf("hostIP ::1 of host port %d cannot be served, since IPv6 has no route_localnet; name 127.0.0.1 or an address of the node: %w", r.HostPort, errdefs.ErrInvalidArgument)
		}
		if p.HostIP.Is6() && p.HostIP.IsLinkLocalUnicast() {
			return p, fmt.Errorf("hostIP %s of host port %d cannot be served, since nothing is forwarded between link-local addresses: %w", p.HostIP, r.HostPort, errdefs.ErrInvalidArgument)
		}
		if p.HostIP.IsMulticast() {
			return p, fmt.Errorf("hostIP %s of host port %d is no address of a node: %w", p.HostIP, r.HostPort, errdefs.ErrInvalidArgument)
		}
	}
	return p, nil
}

// hostPorts are the port mappings as they apply to the pod's addresses, the first of each family.
func (c *Config) hostPorts(addrs []ipam.Address) ([]nft.Port, error) {
	var ports []nft.Port
	for _, m := range c.Ports {
		before := len(ports)
		for _, is4 := range []bool{true, false} {
			wildcard := netip.IPv6Unspecified()
			if is4 {
				wildcard = netip.IPv4Unspecified()
			}
			hostIP := m.HostIP
			if !hostIP.IsValid() {
				hostIP = wildcard
			}
			for _, a := range addrs {
				if pod := a.Prefix.Addr(); pod.Is4() == is4 && hostIP.Is4() == is4 {
					ports = append(ports, nft.Port{Protocol: m.Protocol, HostIP: hostIP, HostPort: m.HostPort,
						Target: netip.AddrPortFrom(pod, m.ContainerPort)})
					break
				}
			}
		}
		if len(ports) == before {
			return nil, fmt.Errorf("hostIP %s of host port %d: the pod has no address of that family: %w", m.HostIP, m.HostPort, errdefs.ErrInvalidArgument)
		}
	}
	return ports, nil
}
