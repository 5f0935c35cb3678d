package nft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/cni/internal/journal"
)

// Port is one host port of a pod, of one address family.
type Port struct {
	Protocol string         `json:"protocol"` // tcp, udp or sctp
	HostIP   netip.Addr     `json:"hostIP"`   // unspecified = every address of the node of that family
	HostPort uint16         `json:"hostPort"`
	Target   netip.AddrPort `json:"target"` // the pod's
}

func (p Port) String() string {
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.HostIP, p.HostPort), p.Protocol)
}

// check finds what Publish and the kernel cannot serve.
func (p Port) check() error {
	if protocolNumber(p.Protocol) == 0 {
		return fmt.Errorf("host port %s: protocol %q is none of tcp, udp, sctp: %w", p, p.Protocol, errdefs.ErrInvalidArgument)
	}
	if p.HostPort == 0 || p.Target.Port() == 0 || !p.HostIP.IsValid() || !p.Target.IsValid() ||
		p.HostIP.Is4() != p.Target.Addr().Is4() || p.HostIP.Zone() != "" || p.Target.Addr().Zone() != "" ||
		p.HostIP.Is4In6() || p.Target.Addr().Is4In6() {
		return fmt.Errorf("host port %s to %s is not possible: %w", p, p.Target, errdefs.ErrInvalidArgument)
	}
	return nil
}

func protocolNumber(protocol string) byte {
	switch protocol {
	case "tcp":
		return unix.IPPROTO_TCP
	case "udp":
		return unix.IPPROTO_UDP
	case "sctp":
		return unix.IPPROTO_SCTP
	}
	return 0
}

type portKey struct {
	protocol string
	port     uint16
	is4      bool
}

type claim struct {
	hostIP netip.Addr
	pod    string
}

func (p Port) key() portKey { return portKey{p.Protocol, p.HostPort, p.HostIP.Is4()} }

// Open reads the pods' host ports from a journal, which it makes when absent. Networks are those of an earlier process:
// with them the table can be written whole at any time. The kernel is not touched.
func Open(ctx context.Context, name, path string, networks map[string]Network) (*Table, error) {
	t := &Table{name: name, networks: networks, pods: map[string][]Port{}, claims: map[portKey][]claim{}}
	var err error
	t.journal, err = journal.Open(ctx, path, func(pod string, value json.RawMessage) error {
		ports, err := parsePorts(value)
		if err != nil {
			return err
		}
		return t.claim(pod, ports)
	})
	if err != nil {
		return nil, fmt.Errorf("host ports: %w", err)
	}
	return t, nil
}

func parsePorts(data []byte) ([]Port, error) {
	var ports []Port
	if err := json.Unmarshal(data, &ports); err != nil {
		return nil, err
	}
	for _, p := range ports {
		if err := p.check(); err != nil {
			return nil, err
		}
	}
	return ports, nil
}

// Publish gives host ports to a pod. A port that another pod holds is an error that names the holder. A wildcard
// host address and a specific one of the same port exclude each other, as they do for sockets and for the scheduler.
// On error nothing is published.
func (t *Table) Publish(pod string, ports []Port) error {
	if len(ports) == 0 {
		return nil
	}
	for _, p := range ports {
		if err := p.check(); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.claim(pod, ports); err != nil {
		return err
	}
	err := t.journal.Put(pod, ports, false)
	if err == nil {
		err = t.change(ports, (*nftables.Conn).SetAddElements)
	}
	if err != nil {
		t.unclaim(pod)
		return errors.Join(fmt.Errorf("publishing host ports of pod %s: %w", pod, err), t.journal.Delete(pod))
	}
	return nil
}

func (t *Table) claim(pod string, ports []Port) error {
	if len(t.pods[pod]) > 0 {
		return fmt.Errorf("pod %s has host ports already: %w", pod, errdefs.ErrAlreadyExists)
	}
	for _, p := range ports {
		for _, c := range t.claims[p.key()] {
			if c.hostIP == p.HostIP || c.hostIP.IsUnspecified() || p.HostIP.IsUnspecified() {
				t.unclaim(pod)
				return fmt.Errorf("host port %s is taken by pod %s: %w", p, c.pod, errdefs.ErrAlreadyExists)
			}
		}
		t.pods[pod] = append(t.pods[pod], p)
		t.claims[p.key()] = append(t.claims[p.key()], claim{p.HostIP, pod})
	}
	return nil
}

func (t *Table) unclaim(pod string) {
	for _, p := range t.pods[pod] {
		claims := t.claims[p.key()]
		kept := claims[:0]
		for _, c := range claims {
			if c.pod != pod {
				kept = append(kept, c)
			}
		}
		if t.claims[p.key()] = kept; len(kept) == 0 {
			delete(t.claims, p.key())
		}
	}
	delete(t.pods, pod)
}

// change adds or deletes elements. When the kernel refuses (the table was flushed by somebody, or is an earlier
// process's), the table is written anew, which ends at the same state.
func (t *Table) change(ports []Port, apply func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error) error {
	if t.written {
		err := t.batch(func(c *nftables.Conn) error {
			s := newSets(&nftables.Table{Name: t.name, Family: nftables.TableFamilyINet})
			for _, p := range ports {
				set, e := s.element(p)
				if err := apply(c, set, []nftables.SetElement{e}); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			return nil
		}
	}
	return t.replace()
}

// Unpublish takes the pod's host ports away. A pod without any is no error.
func (t *Table) Unpublish(pod string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	ports := t.pods[pod]
	if len(ports) == 0 {
		return nil
	}
	t.unclaim(pod)
	err := t.change(ports, (*nftables.Conn).SetDeleteElements)
	if err == nil {
		err = t.journal.Delete(pod)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("removing host ports of pod %s: %w", pod, err), t.claim(pod, ports))
	}
	return nil
}

// Sweep takes the host ports of every pod away that is not live, and writes the table anew when there is anything
// to have one for: after it the kernel has what the records say.
func (t *Table) Sweep(live map[string]bool) (released int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var dead []string
	for pod, ports := range t.pods {
		if !live[pod] {
			dead = append(dead, pod)
			released += len(ports)
		}
	}
	for _, pod := range dead {
		t.unclaim(pod)
	}
	if len(t.networks) > 0 || len(dead) > 0 {
		if err := t.replace(); err != nil {
			return 0, err // the records stay; the next start finds them again
		}
	}
	var errs []error
	for _, pod := range dead {
		errs = append(errs, t.journal.Delete(pod))
	}
	return released, errors.Join(errs...)
}

// Len is the number of host ports given to pods.
func (t *Table) Len() (ports int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.pods {
		ports += len(p)
	}
	return ports
}
