package nft

import (
	"bytes"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// ForwardDrop is a chain of somebody else that drops what it does not accept of the traffic through the node, as
// Docker's FORWARD does.
type ForwardDrop struct{ Family, Table, Chain string }

// maxJumps is how far jumps out of such a chain are followed.
const maxJumps = 3

// ForwardDrops lists the chains that drop packets from or to pods on a bridge: those of the forward hook with the
// policy drop in which no rule accepts everything from the bridge and everything to it. Rules that choose interfaces by
// a set are not understood. Rules of iptables-legacy are not seen.
func ForwardDrops(bridge string) ([]ForwardDrop, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("listing nftables chains: %w", err)
	}
	var drops []ForwardDrop
	for _, ch := range chains {
		family := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}[ch.Table.Family]
		if family == "" || ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop {
			continue
		}
		from, to, err := accepts(c, ch, bridge, maxJumps)
		if err != nil {
			return nil, fmt.Errorf("listing rules of chain %s of table %s %s: %w", ch.Name, family, ch.Table.Name, err)
		}
		if !from || !to {
			drops = append(drops, ForwardDrop{family, ch.Table.Name, ch.Name})
		}
	}
	return drops, nil
}

// accepts tells whether a chain accepts everything from the bridge, and everything to it.
func accepts(c *nftables.Conn, ch *nftables.Chain, bridge string, jumps int) (from, to bool, err error) {
	rules, err := c.GetRules(ch.Table, ch)
	if err != nil {
		return false, false, err
	}
	for _, r := range rules {
		in, out, v := matches(r.Exprs, bridge)
		if v == nil || !in && !out {
			continue
		}
		switch v.Kind {
		case expr.VerdictAccept:
			from, to = from || in, to || out
		case expr.VerdictJump, expr.VerdictGoto:
			if jumps == 0 {
				continue
			}
			f, t, err := accepts(c, &nftables.Chain{Table: ch.Table, Name: v.Chain}, bridge, jumps-1)
			if err != nil {
				return false, false, err
			}
			from, to = from || in && f, to || out && t
		}
	}
	return from, to, nil
}

// matches tells whether a rule's verdict is for all packets from the bridge, and for all to it: it has no other
// condition than that.
func matches(exprs []expr.Any, bridge string) (from, to bool, v *expr.Verdict) {
	from, to = true, true
	var key expr.MetaKey
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Meta:
			if key = e.Key; key != expr.MetaKeyIIFNAME && key != expr.MetaKeyOIFNAME || e.SourceRegister {
				return false, false, nil
			}
		case *expr.Cmp:
			is := e.Op == expr.CmpOpEq && isName(e.Data, bridge)
			from, to = from && is && key == expr.MetaKeyIIFNAME, to && is && key == expr.MetaKeyOIFNAME
		case *expr.Verdict:
			v = e
		default:
			return false, false, nil
		}
	}
	return from, to, v
}

// isName compares with an interface's name as rules have it: without a zero at its end it is the start of one.
func isName(pattern []byte, name string) bool {
	exact, _, terminated := bytes.Cut(pattern, []byte{0})
	if terminated {
		return string(exact) == name
	}
	return bytes.HasPrefix([]byte(name), pattern)
}
