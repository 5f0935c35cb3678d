package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

// GC releases what belongs to no pod of livePodIDs: attachments by their chain's DEL, then leases, host ports and links
// of the built-in network that no attachment names any more. Called at start, before the first Attach. It goes on
// behind an error and returns all; what could not be released is tried again in the background. So are the plugins'
// own GC and the CHECK of live pods done, after it has returned.
func (n *Networks) GC(ctx context.Context, livePodIDs []string) error {
	live := map[string]bool{}
	for _, id := range livePodIDs {
		live[id] = true
	}
	errs := []error{n.adoptCached()}
	detached := 0
	for id := range n.records.all() {
		if live[id] {
			continue
		}
		if err := n.detach(ctx, id, ""); err != nil {
			errs = append(errs, fmt.Errorf("detaching pod %s, which is gone: %w", id, err))
			live[id] = n.records.get(id) != nil // its next try needs what is left
			continue
		}
		detached++
	}
	n.start.end()
	if detached > 0 {
		klog.FromContext(ctx).Info("Detached pods that are gone", "pods", detached)
	}
	errs = append(errs, n.dropCached(), n.leaseAgain(ctx, live))
	// Where there was no configuration and no state of it, the built-in network touches nothing.
	errs = append(errs, n.bridge.Sweep(ctx, live))
	n.settle(n.unknown(livePodIDs))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("releasing networks of pods that are gone: %w", err)
	}
	return nil
}

// settle begins what follows a GC; it takes the place of what another GC has begun so and nobody has come to yet.
func (n *Networks) settle(unknown error) {
	for {
		select {
		case n.settled <- unknown:
			return
		case <-n.settled:
		}
	}
}

// unknown tells why the attachments of live pods are not all known, nil when they are.
func (n *Networks) unknown(livePodIDs []string) error {
	if dropped := n.records.journal.Dropped(); dropped > 0 {
		return fmt.Errorf("%d records of attachments were damaged", dropped)
	}
	for _, id := range livePodIDs {
		if n.records.get(id) == nil {
			return fmt.Errorf("pod %s has no record of its attachment", id)
		}
	}
	return nil
}

// followGC does what follows a GC, until ctx ends: first the plugins' GC, which holds new pods up.
func (n *Networks) followGC(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case unknown := <-n.settled:
			if unknown != nil {
				klog.FromContext(ctx).Error(unknown, "Plugins are not asked to release what no pod has, for they might take it from a pod that lives")
			} else {
				n.collect(ctx)
			}
			n.checkAll(ctx)
		}
	}
}

// adoptCached makes a record of what only libcni's cache knows of, so that it can be detached.
func (n *Networks) adoptCached() error {
	var cached []*libcni.NetworkAttachment
	for _, cache := range []*libcni.CNIConfig{n.libcni, n.within} {
		some, err := cache.GetCachedAttachments("")
		if err != nil {
			return fmt.Errorf("reading libcni's cache: %w", err)
		}
		cached = append(cached, some...)
	}
	for _, c := range cached {
		if n.records.get(c.ContainerID) != nil || c.IfName != ifName {
			continue
		}
		list, err := parseList(c.Config)
		if err != nil {
			continue // dropCached removes it
		}
		a := &attachment{Version: 1, NetNS: c.NetNS, Config: string(list.Bytes), Args: c.CniArgs, Capabilities: c.CapabilityArgs, list: list}
		if err := n.records.put(c.ContainerID, a); err != nil {
			return err
		}
	}
	return nil
}

// leaseAgain gives live pods of the built-in network back the leases that were lost with a damaged journal, or their
// addresses would be given to others. What addresses they have says the result of their ADD.
func (n *Networks) leaseAgain(ctx context.Context, live map[string]bool) error {
	var errs []error
	for id := range live {
		a := n.records.get(id)
		if a == nil || !slices.ContainsFunc(a.list.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Type == bridge.Type }) {
			continue
		}
		leased, err := n.bridge.Leased(ctx, a.list.Name, id)
		if err == nil && !leased {
			err = n.leaseResult(ctx, id, a)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("leasing pod %s the addresses again that it has: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

func (n *Networks) leaseResult(ctx context.Context, id string, a *attachment) error {
	cache := n.libcni
	if builtIn(a.list) {
		cache = n.within
	}
	raw, err := cache.GetNetworkListCachedResult(a.list, a.runtimeConf(id, a.NetNS))
	if raw == nil || err != nil { // without one it was never attached
		return err
	}
	result, err := podResult(raw)
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Leased a pod its addresses again, whose leases were lost", "podID", id, "ips", result.IPs)
	return n.bridge.Hold(ctx, a.list.Name, id, result.IPs)
}

// dropCached removes the files of libcni's cache that belong to no attached pod: DEL removes only what it can read.
func (n *Networks) dropCached() error {
	var errs []error
	var files []string
	for _, dir := range []string{n.cfg.StateDir, n.cfg.RunDir} {
		dir = filepath.Join(dir, "results")
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("reading libcni's cache: %w", err))
		}
		for _, e := range entries {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	want := map[string]bool{} // a pod has its record before its file
	for id, a := range n.records.all() {
		want[n.resultFile(id, a)] = true
	}
	for _, path := range files {
		if want[path] {
			continue
		}
		if err := os.RemoveAll(path); err != nil { // a DEL may have removed it
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
