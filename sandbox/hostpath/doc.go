// Package hostpath opens paths of the host that requests name: sources of
// mounts, log directories. They may lie on a file system that hangs, as NFS
// does without its server, and a process that waits for one cannot be killed:
// the daemon would keep its locks and its socket although it has ended, and no
// other could be started.
//
// So the daemon itself looks only at what the kernel has in its cache
// (openat2(2), RESOLVE_CACHED), where a lookup never waits. That is nearly
// every path, for the kubelet has just made or looked at it. Any other is
// opened by a process of its own, gantry-supervisor's -open, which passes the
// descriptor on; and of those there is one for each path at a time, so that
// retries of a request that hangs do not pile up.
//
// Other work on such paths is done by the same processes ([Opener.Do]); what
// there is, package hostwork says.
//
// What is opened has O_PATH: it is held, and named, without a word to its file
// system.
package hostpath
