package bridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"
)

// Sweep releases the leases, host ports and links of every pod that is not live, and repairs the table. It goes on
// behind an error and returns all.
func (p *Plugin) Sweep(ctx context.Context, live map[string]bool) error {
	names := map[string]bool{}
	for pod := range live {
		names[HostLink(pod)] = true
	}
	ifbs, err := p.listIFBs()
	errs := []error{err}
	keep := map[string]bool{}
	for pod := range live {
		keep[p.ifbLink(pod)] = true
	}
	links := 0
	for _, l := range ifbs {
		if !keep[l] {
			links++
			p.ifbs.add(ctx, l)
		}
	}
	var dead []string
	bridges, err := p.bridges()
	errs = append(errs, err)
	for _, bridge := range bridges {
		ports, err := p.podLinks(bridge)
		errs = append(errs, err)
		for _, l := range ports {
			if !names[l] {
				dead = append(dead, l)
			}
		}
	}
	links += len(dead)
	if err := deleteLinks(p.host, dead, p.ifbs.group); err != nil {
		errs = append(errs, fmt.Errorf("deleting links %v: %w", dead, err))
	}
	ports, err := p.table.Sweep(ctx, live)
	errs = append(errs, err)
	addresses := 0
	for _, n := range p.all() {
		released, err := n.pool.Sweep(live)
		addresses += released
		errs = append(errs, err)
	}
	if links+ports+addresses > 0 {
		klog.FromContext(ctx).Info("Released what pods that are gone had", "links", links, "hostPorts", ports, "addresses", addresses)
	}
	return errors.Join(errs...)
}

// Teardown removes bridges, also those whose records are lost, table and records. It refuses while a pod has an address
// or a host port, and to remove a bridge with other links than pods' on it.
func (p *Plugin) Teardown(ctx context.Context) error {
	if addresses, ports := p.InUse(); addresses+ports > 0 {
		return fmt.Errorf("pods hold %d addresses and %d host ports, remove them first: %w", addresses, ports, errdefs.ErrFailedPrecondition)
	}
	var errs []error
	for _, n := range p.all() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := n.teardown(ctx, p); err != nil {
			errs = append(errs, err)
			continue
		}
		p.mu.Lock()
		delete(p.networks, n.name)
		p.mu.Unlock()
	}
	if len(errs) == 0 {
		errs = append(errs, p.removeUnrecorded(ctx))
	}
	ifbs, err := p.listIFBs()
	if err != nil {
		errs = append(errs, err)
	}
	if err := deleteLinks(p.host, ifbs, p.ifbs.group); err != nil { // which the reaper has not come to
		errs = append(errs, fmt.Errorf("deleting links %v: %w", ifbs, err))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return p.table.Delete()
}

// removeUnrecorded removes the bridges that were made here and that no network knows any more.
func (p *Plugin) removeUnrecorded(ctx context.Context) error {
	names, err := p.ownBridges()
	if err != nil {
		return err
	}
	for _, bridge := range names {
		klog.FromContext(ctx).Info("Removing a bridge whose network's record is lost", "bridge", bridge)
		if err := p.removeBridge(ctx, bridge, false); err != nil {
			return err
		}
	}
	return nil
}

// removeBridge removes a bridge, if it is one that was made here; recorded says that a record takes it for one.
func (p *Plugin) removeBridge(ctx context.Context, bridge string, recorded bool) error {
	link, err := getLink(p.host, bridge)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if !p.owns(link, recorded) {
		klog.FromContext(ctx).Error(nil, "Left a link that a network's record names, but that is no bridge made here", "link", bridge)
		return nil
	}
	ports, err := listLinks(p.host, link.index)
	if err != nil {
		return err
	}
	var names []string // of pods whose namespace is on its way
	for _, l := range ports {
		if !isPodLink(l.name) {
			return fmt.Errorf("bridge %s has link %s on it that is no pod's: %w", bridge, l.name, errdefs.ErrFailedPrecondition)
		}
		names = append(names, l.name)
	}
	if err := deleteLinks(p.host, names, p.ifbs.group); err != nil {
		return fmt.Errorf("deleting links %v: %w", names, err)
	}
	if err := deleteLink(p.host, bridge); err != nil {
		return fmt.Errorf("deleting bridge %s: %w", bridge, err)
	}
	return nil
}

func (n *network) teardown(ctx context.Context, p *Plugin) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.up = nil
	for _, bridge := range n.rec.Made {
		if err := p.removeBridge(ctx, bridge, true); err != nil {
			return err
		}
	}
	if err := n.pool.Close(); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(p.dir, "networks", n.name)); err != nil {
		return fmt.Errorf("removing state of network %s: %w", n.name, err)
	}
	return nil
}

func (p *Plugin) all() []*network {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*network, 0, len(p.networks))
	for _, n := range p.networks {
		all = append(all, n)
	}
	return all
}

// bridges are the names of the bridges that pods are or were on. With an error there may be more.
func (p *Plugin) bridges() ([]string, error) {
	names, err := p.ownBridges()
	for _, n := range p.all() {
		n.mu.Lock()
		names = append(names, n.rec.Made...)
		if n.rec.Bridge != "" {
			names = append(names, n.rec.Bridge)
		}
		n.mu.Unlock()
	}
	slices.Sort(names)
	return slices.Compact(names), err
}

func (p *Plugin) podLinks(bridge string) ([]string, error) {
	link, err := getLink(p.host, bridge)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil, nil
	}
	if err != nil || !p.serves(link) {
		return nil, err
	}
	ports, err := listLinks(p.host, link.index)
	var names []string
	for _, l := range ports {
		if isPodLink(l.name) {
			names = append(names, l.name)
		}
	}
	return names, err
}

// isPodLink knows the names that HostLink makes.
func isPodLink(name string) bool {
	hex, ok := strings.CutPrefix(name, linkPrefix)
	return ok && len(hex) == 11 && strings.Trim(hex, "0123456789abcdef") == ""
}
