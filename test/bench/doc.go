// Command bench measures CRI runtimes side by side, through their sockets only.
//
//	bench [flags] [-rt NAME=unix://SOCKET,PROC+PROC[,HANDLER]]... TEST...
//
// PROC is part of the executable path or command line of the runtime's processes, whose memory is counted. Without
// -rt it starts a gantry of its own, with its own registry, in namespaces of its own (root), and with -containerd PATH
// that containerd beside it, with the reference plugins bridge, host-local and portmap; with -crun PATH that crun, too. Runtimes take turns
// within each test, so that a drift of the machine falls on all of them; only ratios within one run are worth quoting.
//
//	pod       one pod at a time: each request from RunPodSandbox to RemovePodSandbox
//	sandbox   one pod without containers at a time: RunPodSandbox, StopPodSandbox, RemovePodSandbox
//	scale     such pods one after another, up to 500 at once, by how many are there; -plot FILE draws it
//	parallel  many pods at once: rates, memory per pod, cost of the lists and figures
//	recovery  pods, then kill -9 of the daemon: from its start to its first exact lists, 200 pods
//	exec      ExecSync of true, one at a time, beside the OCI runtime's own exec by hand, and 50 at once
//	log       container stdout to the CRI log file
//
// Pulls have a program of their own, test/bench/pulls.
package main
