// Package bridge is the CNI plugin gantry-bridge, run inside the daemon: a bridge per network, a veth pair per pod with
// its peer made in the pod's namespace, addresses of package ipam, masquerade and host ports of package nft.
//
// The configuration (see Config) is that of the reference bridge plugin with the addresses in it:
//
//	{"type": "gantry-bridge", "bridge": "gantry0", "mtu": 0, "hairpinMode": true, "isGateway": true, "ipMasq": true,
//	 "nonMasqueradeCIDRs": ["192.168.0.0/16"],
//	 "subnets": ["10.86.0.0/16", "fd00:86::/64"], "routes": [{"dst": "0.0.0.0/0"}],
//	 "capabilities": {"portMappings": true, "bandwidth": true}}
//
// or, instead of subnets, "ranges" as host-local has them: a list of sets, one address is taken of each set.
//
// Order of an ADD, each step undone when a later one fails: leases, host ports, veth. The record that makes a crash
// harmless is the caller's, written before ADD; leases and host ports name their pod, and the host end of the veth is
// named after it, as is the ifb of an egress limit, so Sweep finds what belongs to no live pod.
//
// DEL leaves the veth to the kernel: removing a link waits for RCU grace periods (tens of milliseconds), while the
// link goes by itself once the pod's namespace does. DEL only disables its bridge port, so that from then on the freed
// addresses answer nowhere. RemoveLink deletes it for a namespace that lives on. The ifb of an egress limit, which is in
// the node's namespace, goes to the reaper, which deletes it in the background.
//
// On disk: <dir>/networks/<network>/network.json, written before the bridge is made, says which bridge it is and
// whether it was made here. That also the kernel knows, by the group of the link: so a bridge whose record is lost is
// removed with the rest, and one that only a record calls ours is not (own.go). <dir>/networks/<network>/leases is package ipam's journal; <dir>/ports is package nft's.
//
// What grows with the pods on a bridge is the kernel's own walk over the bridge's ports when one is added or comes up,
// 0.8 µs per port and pod. Network namespaces and veths are not made ahead: the daemon makes a pod's namespace while it
// writes the pod's record, so that what a pool would save is a few tenths of a millisecond, for namespaces to be swept,
// to be bounded, and not to be had by pods with a user namespace, which owns theirs.
//
// Lock order: Plugin.allocating, Plugin.mu, network.mu, those of ipam.Pool and nft.Table; none is held while waiting for ctx.
package bridge
