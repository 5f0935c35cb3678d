package harness

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// DeleteLink deletes a link of the node, as an operator may.
func DeleteLink(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		return fmt.Errorf("deleting link %s: %w", name, err)
	}
	return nil
}

// FlushRuleset empties the node's nftables, as an operator's firewall may when it starts.
func FlushRuleset() error {
	c, err := nftables.New()
	if err == nil {
		c.FlushRuleset()
		err = c.Flush()
	}
	if err != nil {
		return fmt.Errorf("flushing nftables: %w", err)
	}
	return nil
}
