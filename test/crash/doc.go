// Package crash is the crash-point matrix: the daemon is killed at each change that it makes to the world while it
// serves each RPC that changes it, started again, and everything is compared with what should be.
//
// # A point
//
// Operation, number, before or after: "StartContainer:3:before" is the death of the daemon by SIGKILL when it is about
// to make the third change to the world outside of it (package test/killpoint counts system calls, so that no point can
// be forgotten) since the RPC was sent. A second part, "StartContainer:3:before:20:after", kills the daemon that is
// started then once more, at its twentieth change, while it repairs. GANTRY_CRASH_AT runs one point alone;
// GANTRY_CRASH_ALL=1 runs all of them, which is make crash-matrix; else a random sample is taken, GANTRY_CRASH_SEED
// replays it. As the daemon has many threads, the same number is not always the same change: a failure names both.
//
// # What is required afterwards
//
//   - The object is there whole, or not at all, or in a state of the CRI from which its caller brings it to its end.
//     After half of the points the request is made again and must succeed with one object, not two; after the others
//     the object is stopped and removed as it was found.
//   - A container beside it that ended while no daemon was there has its exit code. A pod that nobody touched has the
//     same containers with the same processes.
//   - When the object is removed, the host is as it was before: processes, mounts, namespaces' pins, links, nftables,
//     leases, cgroups, files of both directories, the supervisor's containers, layers, temporary files, trash.
package crash
