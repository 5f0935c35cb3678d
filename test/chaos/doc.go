// Package chaos lives the lives of many pods on one instance while its daemon and its supervisor are killed at random,
// and compares everything that is answered, and the host, with a model of what should be: make chaos.
//
// # The model
//
// Eight workers live one pod after the other: RunPodSandbox of some kind, one to three containers, a few deeds (exec,
// attach, resources, log rotation, lists, stats, images, port-forward), and one of the ways to an end. A life is drawn
// before it begins, from the seed, the round, the worker and the number of the life; no error and no timing changes it. Of each object a
// worker knows what was answered to it, and so what must be true. Now and then it gives up on a request, by a deadline or by
// cancelling it. After an error it does what the kubelet does: it looks and goes on from what it finds, or it sends the same
// request again.
//
// The killer sends SIGKILL to the daemon, the supervisor, or both, at random moments, also while the next one starts, and
// sometimes SIGTERM to the daemon, and starts the daemon again.
//
// # What is required when
//
//   - Of each error: that it is Unavailable and somebody died within two seconds, or that the worker itself gave up; or that
//     the object is truly in a state that is refused. A request that is sent again and again is answered within two minutes.
//   - When RunPodSandbox is answered: the pod is listed once, ready, with addresses that no other pod has, until it is asked
//     to stop. Pods of a worker have the same host port one after the other.
//   - While a container runs: it has the same process, which has the same start time. The pod that nobody touches does at every kill.
//   - When it has ended: the code is its script's, or what it was asked for by StopContainer; or 255 with the reason Unknown
//     and a message if a supervisor died since it was started (docs/architecture.md). What was told once stays.
//   - Its log, whole lines numbered by the container: each once and in order, over log rotation too; all of them when it has come to its own end.
//     Only a container with a terminal or with stdinOnce may lose its own when daemon and supervisor were dead at one time, and
//     any one whose supervisor died before its start was answered, if it ended before the next was there.
//   - What was removed is not there any more. An image whose pull was answered is there, one whose removal was is not.
//   - Every ten seconds, when all stand still: records, bundles, root file systems and the supervisor's containers are those of what is listed.
//   - Every minute, and at the end, all pods are removed: the host is as it was before, in processes, mounts, pins, links, nftables,
//     leases, cgroups, files, layers (see package harness).
//
// What is not as it must be ends the run: it is printed with the worker's requests of that life, the last kill, and the command that
// does the same again. The moments of kills are not those of the last run, as the machine is not; a failure may need some runs to come back.
package chaos
