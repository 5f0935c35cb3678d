package main

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gantry-cri/gantry/cmd/gantry/config"
	"github.com/gantry-cri/gantry/cni"
)

// checkForward looks for firewalls that keep pods of the built-in network from other hosts, and those from pods.
func checkForward(r *report, cfg config.Config) {
	drops, err := cni.ForwardDrops(cfg.Network.Bridge)
	if err != nil {
		r.warn("firewall", err.Error())
		return
	}
	for _, d := range drops {
		of := map[string]func(netip.Prefix) bool{"ip": v4, "ip6": v6}[d.Family]
		if of != nil && !slices.ContainsFunc(cfg.Network.Subnets, of) {
			continue
		}
		r.warn("firewall", fmt.Sprintf("chain %s of table %s %s drops what no rule of it accepts, so pods and other hosts may not reach each other; let it accept both ways: %s",
			d.Chain, d.Family, d.Table, acceptance(d, cfg.Network.Bridge)))
	}
}

// acceptance is what to type. Docker makes its chain with iptables, and so do most.
func acceptance(d cni.ForwardDrop, bridge string) string {
	if tool := map[string]string{"ip": "iptables", "ip6": "ip6tables"}[d.Family]; tool != "" && d.Table == "filter" && d.Chain == "FORWARD" {
		return fmt.Sprintf("%[1]s -I FORWARD -i %[2]s -j ACCEPT; %[1]s -I FORWARD -o %[2]s -j ACCEPT", tool, bridge)
	}
	chain := d.Family + " " + d.Table + " " + d.Chain
	return fmt.Sprintf("nft insert rule %[1]s iifname %[2]s accept; nft insert rule %[1]s oifname %[2]s accept", chain, bridge)
}

func v4(p netip.Prefix) bool { return p.Addr().Is4() }
func v6(p netip.Prefix) bool { return p.Addr().Is6() }
