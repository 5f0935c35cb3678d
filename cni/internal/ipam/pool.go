package ipam

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/cni/internal/journal"
)

// Address is one address handed out.
type Address struct {
	Prefix  netip.Prefix // the address with the length of its subnet
	Gateway netip.Addr
}

// Pool holds the leases of one network. Its methods may be called concurrently.
type Pool struct {
	network string
	journal *journal.Journal

	mu     sync.Mutex
	holder map[netip.Addr]string   // address -> pod id
	leases map[string][]netip.Addr // pod id -> addresses
	last   map[bool]netip.Addr     // Is4 -> handed out last, for the way round
}

// Open reads the leases of a network from a journal, which it makes when absent.
func Open(ctx context.Context, network, path string) (*Pool, error) {
	p := &Pool{network: network, holder: map[netip.Addr]string{}, leases: map[string][]netip.Addr{}, last: map[bool]netip.Addr{}}
	var err error
	p.journal, err = journal.Open(ctx, path, func(key string, value json.RawMessage) error {
		addr, err := netip.ParseAddr(key)
		var pod string
		if err = errors.Join(err, json.Unmarshal(value, &pod)); err != nil {
			return err
		}
		if addr.Zone() != "" || addr.String() != key || pod == "" { // it could not be released by its key, or is nobody's
			return fmt.Errorf("%q is not how a lease of pod %q is written", key, pod)
		}
		p.hold(addr, pod)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("leases of network %s: %w", network, err)
	}
	return p, nil
}

// Close closes the journal.
func (p *Pool) Close() error { return p.journal.Close() }

func (p *Pool) hold(addr netip.Addr, pod string) {
	p.holder[addr] = pod
	p.leases[pod] = append(p.leases[pod], addr)
}

// Allocate leases one address of each set to the pod; of a set the first range with a free address serves.
// On error nothing is leased. Addresses that one of the others holds are passed over: the same subnet may have served
// under another network's name. The caller sees to it that none of these allocates at the same time.
func (p *Pool) Allocate(pod string, sets [][]Range, others ...*Pool) ([]Address, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if have := p.leases[pod]; len(have) > 0 {
		return nil, fmt.Errorf("pod %s has already address %s of network %s: %w", pod, have[0], p.network, errdefs.ErrAlreadyExists)
	}
	var got []Address
	for _, set := range sets {
		a, err := p.allocateOne(pod, set, others)
		if err != nil {
			return nil, errors.Join(err, p.release(pod))
		}
		got = append(got, a)
	}
	return got, nil
}

func (p *Pool) allocateOne(pod string, set []Range, others []*Pool) (Address, error) {
	var full []string
	for _, r := range set {
		addr := p.last[r.First.Is4()]
		if addr.Less(r.First) || !addr.Less(r.Last) {
			addr = r.Last // the step below starts again at First
		}
		for start := addr; ; {
			if addr == r.Last {
				addr = r.First
			} else {
				addr = addr.Next()
			}
			if p.holder[addr] == "" && addr != r.Gateway && !slices.ContainsFunc(others, func(o *Pool) bool { return o.Holder(addr) != "" }) {
				if err := p.journal.Put(addr.String(), pod, false); err != nil {
					return Address{}, fmt.Errorf("leasing %s of network %s: %w", addr, p.network, err)
				}
				p.hold(addr, pod)
				p.last[addr.Is4()] = addr
				return Address{Prefix: netip.PrefixFrom(addr, r.Subnet.Bits()), Gateway: r.Gateway}, nil
			}
			if addr == start {
				break
			}
		}
		full = append(full, r.String())
	}
	return Address{}, fmt.Errorf("network %s has no free address in range %s, remove pods or widen its subnet: %w",
		p.network, strings.Join(full, ", "), errdefs.ErrUnavailable)
}

// Hold leases addresses to the pod that it has, of which the pool does not know, as its journal was lost.
func (p *Pool) Hold(pod string, addrs []netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, addr := range addrs {
		switch holder := p.holder[addr]; holder {
		case pod:
			continue
		case "":
		default:
			return fmt.Errorf("address %s of pod %s is leased to pod %s in network %s: %w", addr, pod, holder, p.network, errdefs.ErrAlreadyExists)
		}
		if err := p.journal.Put(addr.String(), pod, false); err != nil {
			return fmt.Errorf("leasing %s of network %s: %w", addr, p.network, err)
		}
		p.hold(addr, pod)
	}
	return nil
}

// Leased reports whether the pod has an address.
func (p *Pool) Leased(pod string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.leases[pod]) > 0
}

// Release frees the pod's addresses. A pod without any is no error.
func (p *Pool) Release(pod string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.release(pod)
}

func (p *Pool) release(pod string) error {
	var errs []error
	var kept []netip.Addr
	for _, addr := range p.leases[pod] {
		if err := p.journal.Delete(addr.String()); err != nil {
			errs = append(errs, fmt.Errorf("releasing %s of network %s: %w", addr, p.network, err))
			kept = append(kept, addr)
			continue
		}
		delete(p.holder, addr)
	}
	if len(kept) > 0 {
		p.leases[pod] = kept
	} else {
		delete(p.leases, pod)
	}
	return errors.Join(errs...)
}

// Sweep releases the leases of every pod that is not live.
func (p *Pool) Sweep(live map[string]bool) (released int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for pod, addrs := range p.leases {
		if !live[pod] {
			released += len(addrs)
			errs = append(errs, p.release(pod))
		}
	}
	return released, errors.Join(errs...)
}

// Holder is the pod that an address is leased to, "" when it is free.
func (p *Pool) Holder(addr netip.Addr) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.holder[addr]
}

// Len is the number of addresses in use.
func (p *Pool) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.holder)
}
