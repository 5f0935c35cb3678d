package cni

import (
	"context"
	"errors"
	"os"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"k8s.io/klog/v2"
)

// collect is CNI's GC: every plugin of CNI 1.1 releases what belongs to no attachment of its network. Only a complete
// list of the attachments is safe, for a pod that is missing there loses its address while it runs. So an attachment
// counts as long as its record is there, whether its DEL has failed or not, and for every configuration of its
// network's name: plugins keep their state by that name.
func (n *Networks) collect(ctx context.Context) {
	for _, list := range n.collectable() {
		if ctx.Err() != nil {
			return
		}
		if err := n.collectOne(ctx, list); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Plugins could not release what no pod has, the next start tries again", "network", list.Name)
		}
	}
}

// collectable are the lists in force or of attached pods that a GC may have something to do for; the built-in network
// has been swept.
func (n *Networks) collectable() (lists []*libcni.NetworkConfigList) {
	seen := map[string]bool{}
	add := func(list *libcni.NetworkConfigList) {
		if !seen[string(list.Bytes)] && atLeast(list, "1.1.0") && !list.DisableGC && !builtIn(list) {
			lists = append(lists, list)
		}
		seen[string(list.Bytes)] = true
	}
	if list := n.conf.Load().list; list != nil {
		add(list)
	}
	for _, a := range n.records.all() {
		add(a.list)
	}
	return lists
}

func (n *Networks) collectOne(ctx context.Context, list *libcni.NetworkConfigList) error {
	ctx, cancel := context.WithTimeout(ctx, n.pace.collect)
	defer cancel()
	pods, done := n.calls.collect(list.Name)
	defer done()
	records := n.records.all()
	valid := map[string]bool{}
	for _, id := range pods { // of which some have no record yet
		if records[id] == nil {
			valid[id] = true
		}
	}
	for id, a := range records {
		if a.list.Name == list.Name {
			valid[id] = true
		}
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}} // not nil: the key must be there without pods too
	for id := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: ifName})
	}
	if err := os.WriteFile(n.collecting(), nil, 0o600); err != nil { // for endOrphans
		return err
	}
	return errors.Join(n.libcni.GCNetworkList(ctx, list, args), os.Remove(n.collecting()))
}
