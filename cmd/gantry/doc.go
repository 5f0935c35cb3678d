// Gantry is a container runtime for Kubernetes nodes: a daemon that serves the
// Container Runtime Interface, and the tools of the person who runs it.
//
// The verbs are one file each: serve (serveverb.go reads the flags, serve.go
// puts the parts together), config, doctor and version; image, a client of the
// daemon, is several, image*.go. This is the only package where the parts of
// Gantry meet:
//
//	cri               the socket, gRPC, validation, error codes
//	runtimeservice    what the CRI means for pods and containers
//	imageservice      images: pull, store, mount
//	sandbox           pods and containers as the kernel sees them; sandbox/supervisor keeps them
//	cni               networks
//
// docs/architecture.md is the tour.
package main
