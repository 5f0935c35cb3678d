package bridge

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/utils"

	"github.com/gantry-cri/gantry/cni/internal/ipam"
	"github.com/gantry-cri/gantry/cni/internal/nft"
)

// Config is the parsed and checked configuration of one call.
type Config struct {
	CNIVersion string
	Network    string
	Bridge     string // "" = the plugin's default
	MTU        int    // 0 = that of the node's default route
	Hairpin    bool
	Gateway    bool
	Masquerade bool
	Ranges     [][]ipam.Range // none = those of the capability ipRanges, which is not known yet
	Routes     []Route
	Default    bool // default routes by the gateways, beside Routes
	Ports      []PortMapping
	Bandwidth  Bandwidth
	MAC        net.HardwareAddr // of the pod; nil = that of its first address
	Announce   bool             // tell the neighbours the pod's MAC, since it does not follow from the address
}

// PortMapping is one entry of the capability portMappings.
type PortMapping struct {
	Protocol      string
	HostIP        netip.Addr // zero = all addresses of both families
	HostPort      uint16
	ContainerPort uint16
}

// rawConfig is the JSON of a configuration as libcni passes it.
type rawConfig struct {
	CNIVersion  string       `json:"cniVersion"`
	Name        string       `json:"name"`
	Bridge      string       `json:"bridge"`
	MTU         int          `json:"mtu"`
	HairpinMode bool         `json:"hairpinMode"`
	IsGateway   *bool        `json:"isGateway"`
	IPMasq      bool         `json:"ipMasq"`
	Subnets     []string     `json:"subnets"`
	Ranges      [][]rawRange `json:"ranges"`
	Routes      []rawRoute   `json:"routes"`
	IsDefaultGW *bool        `json:"isDefaultGateway"`
	Runtime     rawRuntime   `json:"runtimeConfig"`
	// ------ the runtime's, here for CheckKeys ------
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	PrevResult   json.RawMessage `json:"prevResult"`
	Args         json.RawMessage `json:"args"`
}

// rawRuntime is what the capabilities bring.
type rawRuntime struct {
	PortMappings []rawPort    `json:"portMappings"`
	Bandwidth    Bandwidth    `json:"bandwidth"`
	IPRanges     [][]rawRange `json:"ipRanges"`
	MAC          string       `json:"mac"`
}

type rawRange struct {
	Subnet, RangeStart, RangeEnd, Gateway string
}

type rawPort struct {
	HostPort, ContainerPort int
	Protocol, HostIP        string
}

// Parse reads a configuration. Errors are ErrInvalidArgument and name the field.
func Parse(data []byte) (*Config, error) {
	var raw rawConfig
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, fmt.Errorf("parsing configuration of gantry-bridge: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	cfg, err := raw.parse()
	if err != nil {
		return nil, fmt.Errorf("configuration of gantry-bridge, network %q: %w", raw.Name, err)
	}
	return cfg, nil
}

func (raw *rawConfig) parse() (*Config, error) {
	cfg := &Config{CNIVersion: raw.CNIVersion, Network: raw.Name, Bridge: raw.Bridge, MTU: raw.MTU,
		Hairpin: raw.HairpinMode, Gateway: raw.IsGateway == nil || *raw.IsGateway, Masquerade: raw.IPMasq}
	if err := utils.ValidateNetworkName(raw.Name); err != nil || len(raw.Name) > 128 {
		return nil, fmt.Errorf("name %q: %w", raw.Name, errdefs.ErrInvalidArgument)
	}
	if raw.Bridge != "" {
		if err := utils.ValidateInterfaceName(raw.Bridge); err != nil {
			return nil, fmt.Errorf("bridge %q: %s: %w", raw.Bridge, err.Msg, errdefs.ErrInvalidArgument)
		}
	}
	if raw.MTU != 0 && (raw.MTU < 576 || raw.MTU > 65535) {
		return nil, fmt.Errorf("mtu %d is not 576-65535: %w", raw.MTU, errdefs.ErrInvalidArgument)
	}
	sets, err := raw.rangeSets()
	if err != nil {
		return nil, err
	}
	cfg.Ranges = sets
	if raw.MTU != 0 && raw.MTU < 1280 && cfg.has(false) {
		return nil, fmt.Errorf("mtu %d is less than the 1280 that IPv6 needs: %w", raw.MTU, errdefs.ErrInvalidArgument)
	}
	if err := raw.routes(cfg); err != nil {
		return nil, err
	}
	cfg.Bandwidth = raw.Runtime.Bandwidth
	if err := cfg.Bandwidth.check(); err != nil {
		return nil, err
	}
	cfg.Announce = raw.Capabilities["mac"]
	if cfg.MAC, err = parseMAC(raw.Runtime.MAC); err != nil {
		return nil, err
	}
	for _, p := range raw.Runtime.PortMappings {
		port, err := p.parse()
		if err != nil {
			return nil, err
		}
		if port.HostPort != 0 { // the kubelet lists ports that are not published too
			cfg.Ports = append(cfg.Ports, port)
		}
	}
	return cfg, nil
}

func (raw *rawConfig) rangeSets() ([][]ipam.Range, error) {
	sets := raw.Ranges
	for _, s := range raw.Subnets {
		sets = append(sets, []rawRange{{Subnet: s}})
	}
	if len(raw.Runtime.IPRanges) > 0 {
		sets = raw.Runtime.IPRanges // the node's pod CIDR, as in the default network
	} else if len(sets) == 0 && raw.Capabilities["ipRanges"] {
		return nil, nil
	}
	if len(sets) == 0 || len(sets) > 8 {
		return nil, fmt.Errorf("subnets and ranges have %d sets, 1-8 are possible: %w", len(sets), errdefs.ErrInvalidArgument)
	}
	var out [][]ipam.Range
	var seen []netip.Prefix
	for _, set := range sets {
		var ranges []ipam.Range
		for _, r := range set {
			parsed, err := r.parse()
			if err != nil {
				return nil, err
			}
			if len(ranges) > 0 && ranges[0].Subnet.Addr().Is4() != parsed.Subnet.Addr().Is4() {
				return nil, fmt.Errorf("range of subnet %s is of another family than its set: %w", parsed.Subnet, errdefs.ErrInvalidArgument)
			}
			for _, s := range seen {
				if s.Overlaps(parsed.Subnet) {
					return nil, fmt.Errorf("subnet %s overlaps %s of another set: %w", parsed.Subnet, s, errdefs.ErrInvalidArgument)
				}
			}
			ranges = append(ranges, parsed)
		}
		if len(ranges) == 0 {
			return nil, fmt.Errorf("ranges have an empty set: %w", errdefs.ErrInvalidArgument)
		}
		for _, r := range ranges {
			seen = append(seen, r.Subnet)
		}
		out = append(out, ranges)
	}
	return out, nil
}

func (r rawRange) parse() (ipam.Range, error) {
	subnet, err := netip.ParsePrefix(r.Subnet)
	if err != nil {
		return ipam.Range{}, fmt.Errorf("subnet %q is no prefix such as 10.86.0.0/16: %w", r.Subnet, errdefs.ErrInvalidArgument)
	}
	var addrs [3]netip.Addr
	for i, s := range []string{r.RangeStart, r.RangeEnd, r.Gateway} {
		if s == "" {
			continue
		}
		if addrs[i], err = netip.ParseAddr(s); err != nil {
			return ipam.Range{}, fmt.Errorf("%s %q is no address: %w", []string{"rangeStart", "rangeEnd", "gateway"}[i], s, errdefs.ErrInvalidArgument)
		}
	}
	return ipam.NewRange(subnet, addrs[0], addrs[1], addrs[2])
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
