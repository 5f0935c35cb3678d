// Package network shows that pods made through the CRI are connected as docs/network.md says, over real namespaces: the
// tests' own network namespace is the node, with a gantry in it, and a second one, joined by a link, is another host. In
// pods and outside of them there are peers that tell from which address they are asked. The package holds tests only.
//
// What the network is made of step by step, with plugins that misbehave, is tested in package cni without a daemon.
package network
