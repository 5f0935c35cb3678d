package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/cni/internal/ipam"
)

// ndmsg is struct ndmsg: a neighbour on a link, whose address is to be verified at its first use.
type ndmsg struct {
	family uint8
	link   int
}

func (m *ndmsg) Len() int { return 12 }

func (m *ndmsg) Serialize() []byte {
	b := binary.NativeEndian.AppendUint32([]byte{m.family, 0, 0, 0}, uint32(m.link))
	return append(binary.NativeEndian.AppendUint16(b, unix.NUD_STALE), 0, 0)
}

// learn tells the node the hardware address of a pod that chose it: an announcement may come before the bridge forwards.
func learn(host *rtnl, bridge int, addrs []ipam.Address, hw net.HardwareAddr) error {
	var reqs []*nl.NetlinkRequest
	for _, a := range addrs {
		family := uint8(unix.AF_INET)
		if a.Prefix.Addr().Is6() {
			family = unix.AF_INET6
		}
		reqs = append(reqs, request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, &ndmsg{family, bridge},
			addrAttr(unix.NDA_DST, a.Prefix.Addr()), nl.NewRtAttr(unix.NDA_LLADDR, hw)))
	}
	errs, err := host.do(reqs...)
	if err = errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("telling the node the pod's hardware address: %w", err)
	}
	return nil
}
