// Package killpoint kills a process at a chosen change that it makes to the world outside of it, to prove that a
// program survives its death at any instruction: between two changes it matters to nobody where the process dies.
//
// # Use
//
// TestMain calls Main first. Attach follows a process that runs already, from this moment on, and kills it with
// SIGKILL at its N-th change, before it is made or right after; End tells what was counted. A test counts N up until the process survives what it is
// asked to do:
//
//	for n := 1; ; n++ {
//		trace, err := killpoint.Attach(pid, killpoint.Point{N: n})
//		... ask the process to do something ...
//		report, err := trace.End()
//		if !report.Killed {
//			break // it has fewer changes than n
//		}
//		... start it again, look for leftovers ...
//	}
//
// # What counts
//
// System calls by which a process changes what outlives it: see calls.go. Writes count when they go to a path (a
// file, /proc, a cgroup) or a pipe (to a program that it started), messages when they go to the kernel (netlink) or to a
// program that listens at a path (the supervisor); answers to clients and what goes to the standard streams do not
// count. All threads of the process are followed, the programs that it starts are not: they go on when it dies, as
// they do when it is killed for another reason.
// Hence to be killed after the N-th change is not quite what it is to be killed before the next: see Report.GoesOn.
//
// # How
//
// With ptrace(2), and from a process of its own, since a tracer in the process that also waits for the traced one
// would take its exit away: Attach starts the test binary again, in which Main is the tracer. It takes the thread
// group over as it runs (PTRACE_SEIZE), so that nothing about the program's start is different.
package killpoint
