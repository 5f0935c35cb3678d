package nft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"

	"github.com/gantry-cri/gantry/cni/internal/conntrack"
	"github.com/gantry-cri/gantry/cni/internal/hostport"
	"github.com/gantry-cri/gantry/cni/internal/journal"
)

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
	t := &Table{name: name, networks: networks, pods: map[string]podPorts{}, claims: map[portKey][]claim{}}
	var err error
	t.journal, err = journal.Open(ctx, path, func(pod string, value json.RawMessage) error {
		r, err := parsePorts(value)
		if err != nil {
			return err
		}
		return t.claim(pod, r)
	})
	if err != nil {
		return nil, fmt.Errorf("host ports: %w", err)
	}
	return t, nil
}

// Publish gives host ports to a pod; name is its namespace/name. A port that another pod or a process of the node holds
// is an error that names the holder (ErrAlreadyExists). A wildcard host address and a specific one of the same port
// exclude each other, as they do for sockets and for the scheduler. On error nothing is published.
func (t *Table) Publish(ctx context.Context, pod, name string, ports []Port) error {
	if len(ports) == 0 {
		return nil
	}
	for _, p := range ports {
		if err := p.check(); err != nil {
			return err
		}
		if err := hostport.Free(p.Protocol, netip.AddrPortFrom(p.HostIP, p.HostPort)); err != nil {
			return err
		}
	}
	if err := t.publish(pod, podPorts{Name: name, Ports: ports}); err != nil {
		return err
	}
	// Behind the rules: the next packet of a client that sends already makes its flow anew, by them.
	t.late.add(ctx, ports)
	return nil
}

func (t *Table) publish(pod string, r podPorts) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.claim(pod, r); err != nil {
		return err
	}
	err := t.journal.Put(pod, r, false)
	if err == nil {
		err = t.change(r.Ports, (*nftables.Conn).SetAddElements)
	}
	if err != nil {
		t.unclaim(pod)
		return errors.Join(fmt.Errorf("publishing host ports of pod %s: %w", pod, err), t.journal.Delete(pod))
	}
	return nil
}

func (t *Table) claim(pod string, r podPorts) error {
	if len(t.pods[pod].Ports) > 0 {
		return fmt.Errorf("pod %s has host ports already: %w", pod, errdefs.ErrAlreadyExists)
	}
	held := podPorts{Name: r.Name}
	for _, p := range r.Ports {
		for _, c := range t.claims[p.key()] {
			if c.hostIP == p.HostIP || c.hostIP.IsUnspecified() || p.HostIP.IsUnspecified() {
				holder := c.pod
				if name := t.pods[c.pod].Name; name != "" {
					holder = name + " (" + c.pod + ")"
				}
				t.unclaim(pod)
				return fmt.Errorf("host port %s is taken by pod %s: %w", p, holder, errdefs.ErrAlreadyExists)
			}
		}
		held.Ports = append(held.Ports, p)
		t.pods[pod] = held
		t.claims[p.key()] = append(t.claims[p.key()], claim{p.HostIP, pod})
	}
	return nil
}

func (t *Table) unclaim(pod string) {
	for _, p := range t.pods[pod].Ports {
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

// Unpublish takes the pod's host ports away. A pod without any is no error. On error they stay the pod's for another
// try, and nobody else gets them.
func (t *Table) Unpublish(ctx context.Context, pod string) error {
	ports, err := t.removeRules(pod)
	if err == nil && len(ports) == 0 {
		return nil
	}
	if err == nil { // behind the rules, so that no packet makes such a flow again; and not under the lock, see conntrack
		err = forgotten(ctx, conntrack.Unpublished, flows(ports))
	}
	if err == nil {
		err = t.release(pod)
	}
	if err != nil {
		return fmt.Errorf("removing host ports of pod %s: %w", pod, err)
	}
	return nil
}

func (t *Table) removeRules(pod string) ([]Port, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, known := t.pods[pod]
	if !known {
		return nil, nil
	}
	r.gone = true
	t.pods[pod] = r
	return r.Ports, t.change(r.Ports, (*nftables.Conn).SetDeleteElements)
}

func (t *Table) release(pod string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.journal.Delete(pod)
	if err == nil {
		t.unclaim(pod)
	}
	return err
}

// Sweep takes the host ports of every pod away that is not live, and writes the table anew when there is anything
// to have one for: after it the kernel has what the records say. On error the ports of the others stay theirs, as with
// Unpublish, for the next start.
func (t *Table) Sweep(ctx context.Context, live map[string]bool) (released int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var dead []string
	var deadPorts, livePorts []Port
	for pod, r := range t.pods {
		if live[pod] {
			livePorts = append(livePorts, r.Ports...)
			continue
		}
		r.gone = true
		t.pods[pod] = r
		dead = append(dead, pod)
		deadPorts = append(deadPorts, r.Ports...)
	}
	if len(t.networks) > 0 || len(dead) > 0 {
		if err := t.replace(); err != nil {
			return 0, err
		}
	}
	if err := forgotten(ctx, conntrack.Unpublished, flows(deadPorts)); err != nil {
		return 0, err
	}
	t.late.add(ctx, livePorts) // the daemon before may have died with some of its own to do
	var errs []error
	for _, pod := range dead {
		err := t.journal.Delete(pod)
		if err == nil {
			t.unclaim(pod)
		}
		errs = append(errs, err)
	}
	return len(deadPorts), errors.Join(errs...)
}

// Len is the number of host ports given to pods.
func (t *Table) Len() (ports int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.pods {
		ports += len(r.Ports)
	}
	return ports
}
