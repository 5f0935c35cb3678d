package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/cni/internal/journal"
)

// elementsPerMessage keeps a message below the 64 KiB that a netlink attribute can hold.
const elementsPerMessage = 256

// Network is what the table knows of a network.
type Network struct {
	Bridge     string
	Subnets    []netip.Prefix
	Masquerade bool
	Direct     []netip.Prefix // elsewhere, what pods of every network reach without
}

// Table is the instance's table and the host ports in it. Its methods may be called concurrently.
type Table struct {
	name    string
	journal *journal.Journal
	late    lateFlush

	mu       sync.Mutex
	networks map[string]Network  // by name
	pods     map[string]podPorts // by pod id: claimed, and in the kernel's maps unless gone
	claims   map[portKey][]claim
	written  bool           // the kernel has the table as of this process
	bridged  bridgedHooks   // as written
	conn     *nftables.Conn // nil until used, and after an error
}

// SetNetwork makes the table know a network; the same again costs nothing.
func (t *Table) SetNetwork(name string, n Network) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, known := t.networks[name]
	if known && t.written && old.Bridge == n.Bridge && old.Masquerade == n.Masquerade &&
		slices.Equal(old.Subnets, n.Subnets) && slices.Equal(old.Direct, n.Direct) {
		return nil
	}
	t.networks[name] = n
	if err := t.replace(); err != nil {
		delete(t.networks, name)
		if known {
			t.networks[name] = old
		}
		return err
	}
	return nil
}

// Delete removes the table from the kernel. It comes back with the next network or port.
func (t *Table) Delete() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.written = false
	err := t.batch(func(c *nftables.Conn) error {
		table := &nftables.Table{Name: t.name, Family: nftables.TableFamilyINet}
		c.AddTable(table) // so that deleting an absent one succeeds
		c.DelTable(table)
		return nil
	})
	if err != nil {
		return fmt.Errorf("deleting nftables table inet %s: %w", t.name, err)
	}
	return t.close()
}

// Close closes the netlink socket and the journal; the table stays in the kernel.
func (t *Table) Close() error {
	t.late.close()
	t.mu.Lock()
	defer t.mu.Unlock()
	return errors.Join(t.close(), t.journal.Close())
}

func (t *Table) close() error {
	if t.conn == nil {
		return nil
	}
	c := t.conn
	t.conn = nil
	return c.CloseLasting()
}

// batch sends what fill adds as one transaction: the kernel applies all of it or nothing.
func (t *Table) batch(fill func(*nftables.Conn) error) error {
	if t.conn == nil {
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(bigBuffers))
		if err != nil {
			return err
		}
		t.conn = c
	}
	err := fill(t.conn)
	if err == nil {
		err = t.conn.Flush()
	}
	if err != nil { // answers may still be under way on this socket
		return errors.Join(err, t.close())
	}
	return nil
}

// bigBuffers makes room for a table of thousands of ports in one transaction and for its acknowledgements.
func bigBuffers(c *netlink.Conn) error {
	return errors.Join(c.SetWriteBuffer(8<<20), c.SetReadBuffer(8<<20))
}

// replace writes the whole table anew, in one transaction: packets see the old rules or the new ones.
func (t *Table) replace() error {
	t.bridged = readBridgedHooks()
	err := t.batch(func(c *nftables.Conn) error {
		table := &nftables.Table{Name: t.name, Family: nftables.TableFamilyINet}
		c.AddTable(table)
		c.DelTable(table)
		c.AddTable(table)
		s := newSets(table)
		for _, set := range s.all() {
			if err := c.AddSet(set, nil); err != nil {
				return err
			}
		}
		addRules(c, table, s, t.bridged)
		return t.addElements(c, s)
	})
	if err != nil {
		t.written = false
		return fmt.Errorf("writing nftables table inet %s: %w", t.name, err)
	}
	t.written = true
	return nil
}

func (t *Table) addElements(c *nftables.Conn, s sets) error {
	elements := map[*nftables.Set][]nftables.SetElement{}
	var pods, masq, direct []netip.Prefix
	bridges := map[string]bool{}
	for _, n := range t.networks {
		bridges[n.Bridge] = true
		pods = append(pods, n.Subnets...)
		direct = append(direct, n.Direct...)
		if n.Masquerade {
			masq = append(masq, n.Subnets...)
		}
	}
	for b := range bridges {
		key := make([]byte, unix.IFNAMSIZ)
		copy(key, b)
		elements[s.bridges] = append(elements[s.bridges], nftables.SetElement{Key: key})
	}
	for i, f := range families() {
		elements[s.pods[i]] = intervals(pods, i == 0)
		elements[s.masq[i]] = intervals(masq, i == 0)
		elements[s.direct[i]] = intervals(slices.Concat(pods, direct, f.onLink), i == 0)
	}
	for _, r := range t.pods {
		if r.gone {
			continue
		}
		for _, p := range r.Ports {
			set, e := s.element(p)
			elements[set] = append(elements[set], e)
		}
	}
	for _, set := range s.all() {
		for chunk := range slices.Chunk(elements[set], elementsPerMessage) {
			if err := c.SetAddElements(set, chunk); err != nil {
				return err
			}
		}
	}
	return nil
}

// intervals are the elements of a set of prefixes of one family: a start and, but for the last address, an open end each. Prefixes within
// others are left out, because intervals of a set must not overlap.
func intervals(prefixes []netip.Prefix, is4 bool) []nftables.SetElement {
	var own []netip.Prefix
	for _, p := range prefixes {
		if p.Addr().Is4() == is4 {
			own = append(own, p.Masked())
		}
	}
	slices.SortFunc(own, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var elements []nftables.SetElement
	var end netip.Addr // first address behind the last interval; none if that is the last of all
	for _, p := range own {
		if len(elements) > 0 && (!end.IsValid() || p.Addr().Less(end)) {
			continue
		}
		if len(elements) > 0 && p.Addr() == end { // adjacent: go on instead of ending and starting at one key
			elements = elements[:len(elements)-1]
		} else {
			elements = append(elements, nftables.SetElement{Key: p.Addr().AsSlice()})
		}
		if end = behind(p); end.IsValid() {
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return elements
}

// behind is the first address after a prefix, if there is one.
func behind(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a.Next()
}

// element is the map and the element of one published port.
func (s sets) element(p Port) (*nftables.Set, nftables.SetElement) {
	family := 1
	if p.Target.Addr().Is4() {
		family = 0
	}
	key := slices.Concat([]byte{protocolNumber(p.Protocol), 0, 0, 0}, portSlot(p.HostPort))
	set := s.anyPorts[family]
	if !p.HostIP.IsUnspecified() {
		set = s.ports[family]
		key = slices.Concat(p.HostIP.AsSlice(), key)
	}
	return set, nftables.SetElement{Key: key, Val: slices.Concat(p.Target.Addr().AsSlice(), portSlot(p.Target.Port()))}
}

// portSlot is a port as a map has it: network order, filled up to a 4-byte register.
func portSlot(port uint16) []byte {
	return append(binary.BigEndian.AppendUint16(nil, port), 0, 0)
}
