// Package cgroup reads, changes and removes control groups that an OCI runtime
// has made, on version 1 (also hybrid) and version 2. It makes only parents of
// containers' cgroups, and never moves a process.
//
// A cgroup is named by its path below the roots of the hierarchies, for example
// /kubepods/pod1/abc: absolute, clean, never "/". On version 1 the same path is
// looked up in each mounted hierarchy. Where these are mounted is read from
// /proc/self/mountinfo once per process.
//
// Files read: cpuacct.usage, memory.{usage_in_bytes,stat,limit_in_bytes,memsw.*},
// pids.current (version 1, Documentation/admin-guide/cgroup-v1); cpu.stat,
// memory.{current,stat,max,swap.*}, pids.current, {cpu,memory,io}.pressure (version 2,
// Documentation/admin-guide/cgroup-v2.rst of the kernel).
//
// It is written without a library: those there are read every file of every
// controller by path for one figure, have no way back after half an update, and
// bring eBPF, D-Bus and logging into every program that imports them.
package cgroup
