package nft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"k8s.io/klog/v2"

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
	if err := forgotten(ctx, conntrack.Published, ports); err != nil {
		return errors.Join(fmt.Errorf("publishing host ports of pod %s: %w", pod, err), t.Unpublish(ctx, pod))
	}
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

// forgotten runs a function of package conntrack. Where the kernel has none, host ports work but for clients that
// never stop to send.
func forgotten(ctx context.Context, forget func([]conntrack.Port) (int, error), ports []Port) error {
	n, err := forget(flows(ports))
	if n > 0 {
		klog.FromContext(ctx).V(4).Info("Made the kernel forget flows to host ports", "flows", n)
	}
	if errdefs.IsNotImplemented(err) {
		klog.FromContext(ctx).Info("Clients of UDP host ports may wait for minutes for the pod's successor", "reason", err.Error())
		return nil
	}
	return err
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
		err = forgotten(ctx, conntrack.Unpublished, ports)
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
// to have one for: after it the kernel has what the records say.
func (t *Table) Sweep(ctx context.Context, live map[string]bool) (released int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var dead []string
	var ports []Port
	for pod, r := range t.pods {
		if !live[pod] {
			dead = append(dead, pod)
			ports = append(ports, r.Ports...)
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
	if err := forgotten(ctx, conntrack.Unpublished, ports); err != nil {
		return 0, err
	}
	var errs []error
	for _, pod := range dead {
		errs = append(errs, t.journal.Delete(pod))
	}
	return len(ports), errors.Join(errs...)
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
