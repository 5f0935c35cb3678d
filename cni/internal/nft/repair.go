package nft

import (
	"bytes"
	"fmt"

	"github.com/google/nftables"
)

// Repair writes the table anew if it is gone, and tells whether it was: nft flush ruleset, which is how nftables.service
// begins, takes masquerade and host ports from all pods. So it does when br_netfilter was loaded or switched meanwhile.
// It costs one message while the table is there.
func (t *Table) Repair() (gone bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.written || len(t.networks) == 0 {
		return false, nil // nobody needs it, or the next to need it writes it
	}
	var tables []*nftables.Table
	err = t.batch(func(c *nftables.Conn) (err error) {
		tables, err = c.ListTablesOfFamily(nftables.TableFamilyINet)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("looking for nftables table inet %s: %w", t.name, err)
	}
	for _, table := range tables {
		if table.Name == t.name {
			if t.bridged != readBridgedHooks() {
				return false, t.replace()
			}
			return false, nil
		}
	}
	return true, t.replace()
}

// Check tells whether the pod's host ports are in the kernel's maps. It reads the maps as a whole.
func (t *Table) Check(pod string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	have := map[*nftables.Set][]nftables.SetElement{}
	return t.batch(func(c *nftables.Conn) error {
		s := newSets(&nftables.Table{Name: t.name, Family: nftables.TableFamilyINet})
		for _, p := range t.pods[pod].Ports {
			set, want := s.element(p)
			if _, read := have[set]; !read {
				elements, err := c.GetSetElements(set)
				if err != nil {
					return fmt.Errorf("reading map %s of nftables table inet %s: %w", set.Name, t.name, err)
				}
				have[set] = elements
			}
			if !contains(have[set], want) {
				return fmt.Errorf("host port %s is not in nftables table inet %s", p, t.name)
			}
		}
		return nil
	})
}

func contains(elements []nftables.SetElement, want nftables.SetElement) bool {
	for _, e := range elements {
		if bytes.Equal(e.Key, want.Key) && bytes.Equal(e.Val, want.Val) {
			return true
		}
	}
	return false
}
