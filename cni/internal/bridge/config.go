package bridge

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/utils"

	"github.com/gantry-cri/gantry/cni/internal/ipam"
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
	Direct     []netip.Prefix // what pods reach without masquerade
	Ranges     [][]ipam.Range // none = those of the capability ipRanges, which is not known yet
	Routes     []Route
	Default    bool // default routes by the gateways, beside Routes
	Ports      []PortMapping
	Bandwidth  Bandwidth
	MAC        net.HardwareAddr // of the pod; nil = that of its first address
	Announce   bool             // tell the neighbours the pod's MAC, since it does not follow from the address
}

// rawConfig is the JSON of a configuration as libcni passes it.
type rawConfig struct {
	CNIVersion         string       `json:"cniVersion"`
	Name               string       `json:"name"`
	Bridge             string       `json:"bridge"`
	MTU                int          `json:"mtu"`
	HairpinMode        bool         `json:"hairpinMode"`
	IsGateway          *bool        `json:"isGateway"`
	IPMasq             bool         `json:"ipMasq"`
	NonMasqueradeCIDRs []string     `json:"nonMasqueradeCIDRs"`
	Subnets            []string     `json:"subnets"`
	Ranges             [][]rawRange `json:"ranges"`
	Routes             []rawRoute   `json:"routes"`
	IsDefaultGW        *bool        `json:"isDefaultGateway"`
	Runtime            rawRuntime   `json:"runtimeConfig"`
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
	if cfg.Direct, err = raw.direct(); err != nil {
		return nil, err
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

// maxDirect bounds the list: it becomes part of one netlink message.
const maxDirect = 256

func (raw *rawConfig) direct() ([]netip.Prefix, error) {
	if len(raw.NonMasqueradeCIDRs) > maxDirect {
		return nil, fmt.Errorf("nonMasqueradeCIDRs has %d prefixes, %d are possible: %w", len(raw.NonMasqueradeCIDRs), maxDirect, errdefs.ErrInvalidArgument)
	}
	var all []netip.Prefix
	for _, c := range raw.NonMasqueradeCIDRs {
		p, err := netip.ParsePrefix(c)
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("nonMasqueradeCIDRs: %q is no prefix such as 10.0.0.0/8: %w", c, errdefs.ErrInvalidArgument)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}
