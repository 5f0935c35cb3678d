// Package cni connects pods to the node's network.
//
// It runs the plugin chain of the CNI configuration directory through libcni, and carries two plugins in this
// process: gantry-bridge (package internal/bridge) and loopback. Every other plugin is executed as the CNI
// specification says (https://github.com/containernetworking/cni/blob/main/SPEC.md). Without any configuration a
// default list with gantry-bridge serves, so that a bare machine has working pods.
//
// # Which configuration
//
// The first valid *.conflist, *.conf or *.json by name in Config.ConfDir. A file that is not valid is logged once and
// passed over; when files are there but none is valid, the network is not ready and Status says why. The directory
// is watched, so a change counts from the next Attach on; but while the file in force is no JSON it is being written,
// and what it said before counts for some seconds more. A pod keeps the configuration of its Attach: its Detach runs
// the same chain, whatever the directory says by then.
//
// # States of a pod
//
//	(nothing) --Attach--> record written --chain ADD--> attached --Detach: chain DEL--> record removed
//	                            |                                        |
//	                            +-- ADD fails: chain DEL, record removed  +-- DEL fails: the record stays, Detach again
//	                                      |                                    or the background does
//	                                      +-- DEL fails: the same
//
// A record is there from before the first plugin runs until after the last one has undone its work. So whatever
// instruction the daemon is killed at, GC at the next start finds the pod and runs the chain's DEL. Between two plugins
// of other programs the record gets the result so far, for a DEL that needs it. A plugin goes on when the daemon dies
// that runs it: one that Open finds in its ADD is killed, or it would take an address after that DEL, and one in its GC,
// or it would free what pods get from now on.
//
// # In the background
//
// Three goroutines, begun by Open and ended by Close with the plugins that they run; none holds a lock meanwhile:
//
//   - followStatus asks the plugins in force for their STATUS (CNI 1.1) and looks for their programs: Status tells what
//     came of it. A bad verdict does not keep Attach from trying.
//   - followRetries runs the DELs again that failed.
//   - followGC runs, once GC has found out who lives, the plugins' GC (CNI 1.1) and one CHECK of each attached pod.
//
// What keeps them and callers apart is in calls: one call per pod at a time, where a CHECK gives way and a DEL in the
// background is waited for; and no attachment begins to a network whose GC is under way.
//
// # Files below Config.StateDir
//
//	attachments                       journal of the records: configuration and arguments of each pod's ADD
//	results/<network>-<pod id>-eth0   libcni's cache: the result of the ADD, prevResult of the DEL;
//	                                  of lists that are built in it is below Config.RunDir
//	networks/, ports                  gantry-bridge's, see internal/bridge
//	pod-cidr                          what SetPodCIDR got
//	collecting                        is there while plugins run their GC
//	*.damaged                         what could not be read, set aside
//
// Records are not flushed to the disk as long as the chain is built in: after a power cut no pod lives, and leases
// name their pod. A chain with other plugins may hold addresses outside this node, so its records are flushed.
package cni
