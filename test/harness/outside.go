package harness

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// outsideLink is the node's end of its link to the other host.
const outsideLink = "outside0"

// Outside is another host: a network namespace that a link joins to the node, which is the tests' own. It knows no way
// to pods. There is one at a time; make it before the instances whose audits it must not be in.
type Outside struct {
	Node, Host []netip.Addr // their addresses on the link, IPv4 and IPv6

	work  chan func() error
	done  chan error
	ended chan error
}

// NewOutside makes it; Close removes it.
func NewOutside() (*Outside, error) {
	o := &Outside{
		Node: []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:213::1")},
		Host: []netip.Addr{netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8:213::2")},
		work: make(chan func() error), done: make(chan error), ended: make(chan error, 1),
	}
	go func() { o.ended <- onThread(o.host) }()
	select {
	case <-o.done:
	case err := <-o.ended:
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	if err := o.join(); err != nil {
		return nil, errors.Join(fmt.Errorf("joining the host outside to the node: %w", err), o.Close())
	}
	return o, nil
}

// host works in the namespace, which nothing pins, until Close.
func (o *Outside) host() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	o.done <- nil
	for f := range o.work {
		o.done <- f()
	}
	return nil
}

// Do runs f on the other host, one at a time. Its sockets stay there; goroutines that it starts are on the node.
func (o *Outside) Do(f func() error) error {
	o.work <- f
	return <-o.done
}

func (o *Outside) join() error {
	var far int
	if err := o.Do(func() error { far = unix.Gettid(); return nil }); err != nil {
		return err
	}
	const farLink = "eth0"
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: outsideLink}, PeerName: farLink, PeerNamespace: netlink.NsPid(far)}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	if err := linkUp(outsideLink, o.Node); err != nil {
		return err
	}
	return o.Do(func() error { return errors.Join(linkUp("lo", nil), linkUp(farLink, o.Host)) })
}

func linkUp(name string, addrs []netip.Addr) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding link %s: %w", name, err)
	}
	// The kernel's own address too must be there at once, for neighbours of forwarded packets are asked from it.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0); err != nil {
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(fmt.Sprintf("%s/%d", a, map[bool]int{true: 24, false: 64}[a.Is4()]))
		if err != nil {
			return err
		}
		if a.Is6() {
			addr.Flags = unix.IFA_F_NODAD // there at once
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("giving link %s its address %s: %w", name, a, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("setting link %s up: %w", name, err)
	}
	return nil
}

// Close removes the link and the namespace.
func (o *Outside) Close() error {
	close(o.work)
	if err := <-o.ended; err != nil {
		return err
	}
	// The kernel removes the link with the namespace, in a moment; it must not be there when the next one is made.
	l, err := netlink.LinkByName(outsideLink)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
