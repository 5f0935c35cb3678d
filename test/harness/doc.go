// Package harness starts real gantry daemons for tests and benchmarks and proves that they leave nothing behind.
//
// # Isolation
//
// A test package calls Main from TestMain. It runs the tests in a child process with network, mount, IPC and cgroup
// namespaces of its own, so that host ports cannot collide, nothing reaches the machine's network, and every mount,
// link, nftables table and cgroup in sight is the tests'. The child is a subreaper: supervisors and containers that
// lose their parents stay its descendants. When the child ends, however it ends, the parent kills what is left and
// removes the cgroups and the temporary folder.
//
// # Instances
//
// Start (New in tests) runs bin/gantry under a temporary folder with its own bridge and subnet and waits until it
// is ready. Stop, Kill and Restart act on the daemon alone; containers and their supervisor go on. Close ends
// everything and removes the folder.
//
// # Audit
//
// Two snapshots are taken of the mounts, links, nftables tables and elements, cgroups, processes and files: one
// before the daemon's first start, one when it is first ready. Audit, with the daemon up and all pods removed,
// compares with the second; Close compares with the first. Whatever is there beyond is an error that lists it. As
// tear-down in the kernel may end a moment after the call that caused it, a comparison is repeated for some
// seconds before it fails. Instances that run beside each other must be closed in the reverse order of their start.
package harness
