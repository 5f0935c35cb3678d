package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
	"github.com/gantry-cri/gantry/cni/internal/ipam"
)

// podCIDR is what the kubelet told of the node's addresses, and the default network that has them.
type podCIDR struct {
	path      string // of the file that remembers it
	otherwise []netip.Prefix
	list      func(subnets []netip.Prefix) (*libcni.NetworkConfigList, error)

	writing sync.Mutex // of the file; taken before mu, which is not held meanwhile
	mu      sync.Mutex
	subnets []netip.Prefix
	network *libcni.NetworkConfigList // nil until used, and after a change
}

func openPodCIDR(ctx context.Context, cfg Config) (*podCIDR, error) {
	p := &podCIDR{path: filepath.Join(cfg.StateDir, "pod-cidr"), otherwise: cfg.Subnets,
		list: func(subnets []netip.Prefix) (*libcni.NetworkConfigList, error) {
			return defaultList(cfg.Bridge, subnets, cfg.NonMasqueradeCIDRs)
		}}
	data, err := readFile(p.path)
	if errors.Is(err, os.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		p.subnets, err = parseCIDRs(string(data))
	}
	if err != nil {
		return p, setAside(ctx, p.path, err)
	}
	return p, nil
}

// set remembers it. The kubelet tells the same again at each of its starts, which changes nothing.
func (p *podCIDR) set(cidrs string) error {
	subnets, err := parseCIDRs(cidrs)
	if err != nil {
		return err
	}
	p.writing.Lock()
	defer p.writing.Unlock()
	if slices.Equal(subnets, p.known()) {
		return nil
	}
	if err := writeFile(p.path, []byte(cidrs)); err != nil {
		return fmt.Errorf("remembering it: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.subnets, p.network = subnets, nil
	return nil
}

// known are the subnets, none before the kubelet told.
func (p *podCIDR) known() []netip.Prefix {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.subnets
}

// defaultNetwork is the list that serves when the directory is empty.
func (p *podCIDR) defaultNetwork() (*libcni.NetworkConfigList, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.network == nil {
		subnets := p.otherwise
		if len(p.subnets) > 0 {
			subnets = p.subnets
		}
		list, err := p.list(subnets)
		if err != nil {
			return nil, fmt.Errorf("default network: %w", err)
		}
		p.network = list
	}
	return p.network, nil
}

func defaultList(bridgeName string, subnets, direct []netip.Prefix) (*libcni.NetworkConfigList, error) {
	plugin := map[string]any{
		"type": bridge.Type, "bridge": bridgeName, "isGateway": true, "ipMasq": true, "hairpinMode": true,
		"subnets": subnets, "capabilities": map[string]bool{"portMappings": true, "bandwidth": true},
	}
	if len(direct) > 0 {
		plugin["nonMasqueradeCIDRs"] = direct
	}
	data, err := json.Marshal(map[string]any{"cniVersion": version.Current(), "name": "gantry", "plugins": []any{plugin}})
	if err != nil {
		return nil, err
	}
	return parseList(data)
}

func parseCIDRs(cidrs string) ([]netip.Prefix, error) {
	var subnets []netip.Prefix
	for _, s := range strings.Split(cidrs, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return nil, fmt.Errorf("%q is no prefix such as 10.86.0.0/24: %w", s, errdefs.ErrInvalidArgument)
		}
		subnets = append(subnets, p.Masked())
	}
	return subnets, checkSubnets(subnets)
}

func checkSubnets(subnets []netip.Prefix) error {
	for i, p := range subnets {
		if _, err := ipam.NewRange(p, netip.Addr{}, netip.Addr{}, netip.Addr{}); err != nil {
			return err
		}
		if i > 1 || (i == 1 && p.Addr().Is4() == subnets[0].Addr().Is4()) {
			return fmt.Errorf("%v: at most one subnet per family: %w", subnets, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
