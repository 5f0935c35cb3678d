// Package runtimeservice is the RuntimeService of the CRI: what its requests
// mean, in which order things are done, what is remembered. It knows no gRPC
// code (those are chosen in package cri) and no kernel (that is package
// sandbox's).
//
// [Service] embeds one type for each group of RPCs: pods, containers, exec,
// streaming, stats, node. They share the index, the in-memory books of all pods and
// containers, from which every read is answered; a read takes only the short
// locks of the index and of one object, none that is held while something slow
// happens.
//
// # Changing a pod or container
//
// Each object has an operation lock (op), taken with the caller's context and
// held by RunPodSandbox, StopPodSandbox, RemovePodSandbox, CreateContainer (its
// pod's too), StartContainer, RemoveContainer, UpdateContainerResources and
// CheckpointContainer for their whole time. It is the
// only lock held while something slow happens, and slows nothing but its own
// object. StopContainer does not take it: it sends signals and waits.
//
// Lock order:
//
//	pod.op
//	└ container.op
//	  └ core.cgroupsMu
//	    └ pod.recordMu, container.recordMu
//	      └ index.mu, pod.mu, container.mu (never two of these at once)
//	        └ feed.mu
//
// An operation writes its intent (lifecycle's states in -ing), changes the
// world, writes the result. recover.go and settle.go are what start-up makes of
// intents, under the same locks.
package runtimeservice
