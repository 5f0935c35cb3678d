// Package kubelet runs a real kubelet with static pods against a real gantry: the two that must work together on a
// node, with nothing between them and no API server above. The package holds tests only.
//
// The kubelet is built from its released sources by hack/build.sh, with the module in build/ that pins it; nothing of
// it enters the product's go.mod. Its pods are the manifests in the tests, and what became of them is read from the
// kubelet's own API: the pods' status that a cluster would show, logs, stats, probes. Where the kubelet does not pass
// on what the runtime said, the CRI is asked. At the end its log must blame the runtime for nothing.
//
// One kubelet on one gantry serves all cases beside each other, as on a node. What needs the node for itself comes
// after: a restart of the kubelet, one of gantry, and the removal of everything, after which nothing may be left.
//
// The kubelet's own /exec, /attach and /portForward hand their clients on to gantry's streaming server: the tests are such
// clients, over SPDY and over WebSockets.
//
// A kubelet without an API server has no runtime classes either, and with them refuses recursive read-only mounts: test/e2e
// has those.
package kubelet
