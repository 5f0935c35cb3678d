package bridge

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/utils"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Which bridges were made here is known twice. The record says it, which may be lost, and be wrong; so does the group of
// the link (ip link show group), which the kernel keeps and a bridge has from its making on. What is removed has both, or
// the group alone.

// owned begins the groups of those who make their own by instance.
const owned = 1 << 31

// owns reports whether a link is a bridge of this instance. Those of earlier versions have no group, but are recorded
// and have a hardware address that follows from the gateway's.
func (p *Plugin) owns(l linkInfo, recorded bool) bool {
	return l.kind == "bridge" && (l.group == p.group || recorded && l.group == 0 && bytes.HasPrefix(l.mac, macPrefix))
}

// serves reports whether pods of this instance may be on a link: its own bridges and the operator's, but not another
// instance's.
func (p *Plugin) serves(l linkInfo) bool {
	return l.kind == "bridge" && (l.group == p.group || l.group < owned)
}

// ownBridges are the names of the bridges of this instance, by what the kernel says.
func (p *Plugin) ownBridges() ([]string, error) {
	all, err := links(p.host, request(unix.RTM_GETLINK, unix.NLM_F_DUMP, ifinfo(0, false), nest(unix.IFLA_LINKINFO, str(nl.IFLA_INFO_KIND, "bridge"))))
	if err != nil {
		return nil, fmt.Errorf("listing bridges: %w", err)
	}
	var names []string
	for _, l := range all { // older kernels do not filter
		if p.owns(l, false) {
			names = append(names, l.name)
		}
	}
	return names, nil
}

// most is more bridges and subnets than a network ever has.
const most = 1024

// check refuses a record that reads well, but does not come from here.
func (r record) check() error {
	if len(r.Made) > most || len(r.Subnets) > most || len(r.Direct) > maxDirect {
		return fmt.Errorf("%d bridges, %d subnets or %d nonMasqueradeCIDRs are too many", len(r.Made), len(r.Subnets), len(r.Direct))
	}
	for _, name := range append(slices.Clone(r.Made), r.Bridge) {
		if err := utils.ValidateInterfaceName(name); err != nil {
			return fmt.Errorf("bridge %.80q: %s", name, err.Msg)
		}
	}
	for what, prefixes := range map[string][]netip.Prefix{"subnet": r.Subnets, "nonMasqueradeCIDR": r.Direct} {
		for _, p := range prefixes {
			if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
				return fmt.Errorf("%s %q is no prefix such as 10.86.0.0/16", what, p)
			}
		}
	}
	return nil
}
