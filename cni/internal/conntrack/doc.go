// Package conntrack forgets flows to host ports that the kernel would keep on a way that is not right any more.
//
// The NAT of a flow is decided by its first packet. A client of a UDP host port that never stops to send, from one
// port of its own, keeps its entry alive: without this it would go to a pod that is gone, or nowhere, for ever. Its
// entry goes when the port is taken away (Unpublished), and when it is given while the client is sending already
// (Published). TCP needs neither: a new connection comes from another port, and the old one ends with its pod. SCTP
// does, because its clients (of telephony) keep their port when they connect again.
//
// The kernel picks the entries (CTA_FILTER, Linux 5.8; an older one sends those of the protocol), and each is looked
// at again here before it is deleted by its tuple and id. A dump walks the kernel's whole hash table: 9 ms for 262,144
// empty buckets, which is what a node with 4 GiB has, once per port and family, and 4 µs for each flow to the port.
// Nothing but the walk finds a flow whose client is not known. So pods without such ports never ask for one, and package
// nft does Published in the background.
package conntrack
