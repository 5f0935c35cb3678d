// Package sandbox is one pod on this node, as the kernel sees it: its
// namespaces, its /dev/shm and generated files, its cgroup, and the processes
// of its containers. It knows no CRI.
//
// A pod has no process of its own. Its network, IPC and UTS namespaces are
// made by a thread of the daemon that ends right afterwards, and live on
// because their nsfs files are bind-mounted (namespaces(7)). With a user
// namespace, which owns the others, they are those of a process that ends as
// soon (userns.go).
//
//	<run>/pods/<pod>/ns/{user,net,ipc,uts,pid}   pins; "pid" only with a shared PID namespace
//	<run>/pods/<pod>/shm                    tmpfs, bound to /dev/shm of every container
//	<run>/pods/<pod>/{resolv.conf,hostname,hosts}
//	<run>/containers/<container>/config.json    OCI bundle
//	<run>/runtimes/<handler>/                   state of the OCI runtime (--root)
//	<run>/podinit/                              root file system of pod inits
//
// Everything is under the run directory and is worth nothing after a reboot.
// [Host.RemovePod] and [Host.DeleteContainer] undo whatever is there, in any
// state that a crash may have left, and succeed when nothing is.
//
// Processes are started, watched and killed by the supervisor
// (sandbox/supervisor), which outlives the daemon; this package is its only
// client.
package sandbox
