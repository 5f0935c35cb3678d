// Package crash is the crash-point matrix: the daemon, or the supervisor, is killed at each change that it makes to the
// world while the daemon serves each RPC that changes it, started again, and everything is compared with what should be.
//
// # A point
//
// Operation, number, before or after: "StartContainer:3:before" is the death of the daemon by SIGKILL when it is about
// to make the third change to the world outside of it (package test/killpoint counts system calls, so that no point can
// be forgotten) since the RPC was sent. A second part, "StartContainer:3:before:20:after", kills the daemon that is
// started then once more, at its twentieth change, while it repairs. Before that:
//
//   - supervisor/StartContainer:3:before is the death of the supervisor at its own third change; the daemon lives, and
//     starts another one.
//   - StartContainer+both:3:before is that of the daemon, and the supervisor is killed with it.
//   - StartContainer+cold:3:before is that of a daemon that was started just before, which has made no files and
//     directories for later yet.
//
// The operations exit and start are no RPCs: a container ends by itself, and the daemon starts. What a terminal and stdin
// are made of dies with both, so operations with those have no +both.
//
// GANTRY_CRASH_AT runs one point alone; GANTRY_CRASH_ALL=1 runs all of them, which is make crash-matrix, a regular
// expression those of some operations; else a random sample is taken, GANTRY_CRASH_SEED replays it. As the programs have
// many threads, the same number is not always the same change: a failure names both.
//
// # What is required afterwards
//
//   - The object is there whole, or not at all, or in a state of the CRI from which its caller brings it to its end.
//     After half of the points the request is made again and must succeed with one object, not two; after the others
//     the object is stopped and removed as it was found.
//   - All that is listed has what belongs to it on the host, and nothing is there that is not listed (package audit).
//   - A container beside it that ended while no daemon was there has its exit code, or, if the supervisor was dead too,
//     255 with the reason Unknown. A pod that nobody touched has the
//     same containers with the same processes.
//   - When the object is removed, the host is as it was before: processes, mounts, namespaces' pins, links, nftables,
//     leases, cgroups, files of both directories, the supervisor's containers, layers, temporary files, trash.
package crash
