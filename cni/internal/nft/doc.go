// Package nft keeps the one nftables table of an instance: masquerade of pod traffic and host ports.
//
// The rules are written once; what belongs to a pod or a network is an element of a map or a set, so the cost of a
// pod does not grow with their number and nothing of the ruleset is ever read. The table (family inet) is, in nft's
// own words:
//
//	set bridges   { type ifname }                        # bridges of this instance
//	set pods4     { type ipv4_addr; flags interval }     # subnets of pods; pods6 alike
//	set masq4     { type ipv4_addr; flags interval }     # those of them that are masqueraded; masq6 alike
//	set direct4   { type ipv4_addr; flags interval }     # where they are not: pods4, multicast and the like, what networks name; direct6
//	map ports4    { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }  # with a hostIP; ports6
//	map anyports4 { type inet_proto . inet_service : ipv4_addr . inet_service }              # without; anyports6
//
//	chain guard {                                        # route_localnet must not open the node's 127.0.0.1 to pods
//		type filter hook prerouting priority raw
//		iifname @bridges ip daddr 127.0.0.0/8 drop
//		iifname @bridges ip saddr 127.0.0.0/8 drop
//	}
//	chain prerouting { type nat hook prerouting priority dstnat; fib daddr type local jump hostports }
//	chain output     { type nat hook output     priority dstnat; fib daddr type local jump hostports }
//	chain hostports {
//		ip6 daddr ::1 return                         # IPv6 has no route_localnet: answers to ::1 are never let in
//		ip6 daddr fe80::/10 return                   # nor are packets between link-local addresses forwarded
//		# both set the bit 0x1000 of the mark of what they translate
//		meta nfproto ipv4 dnat ip to ip daddr . meta l4proto . th dport map @ports4
//		meta nfproto ipv4 dnat ip to meta l4proto . th dport map @anyports4
//		... ipv6 alike
//	}
//	chain postrouting {
//		type nat hook postrouting priority srcnat
//		oifname @bridges ct status dnat ip saddr 127.0.0.0/8 masquerade           # the node through its loopback
//		oifname @bridges ct status dnat ip saddr @pods4 ip daddr @pods4 masquerade # a pod through a host port or service
//		ip saddr @masq4 ip daddr != @direct4 masquerade
//		... ipv6 alike
//	}
//
// A pod that reaches a pod through a host port has the bridge's address there, because the answer must come back by
// the node to be translated, also to the pod itself. So must that of a pod behind a service of kube-proxy's, unless
// br_netfilter shows the tables what goes through a bridge: then the rule asks for the mark instead of ct status, and
// services see the caller's own address (see bridgedHooks).
//
// Host ports hold on to their table only: a host whose own ruleset drops in the forward hook must accept traffic from
// and to the bridge there, because no other table can overrule a drop.
//
// On disk: a journal, pod id -> host ports, changed before the elements are added and after they are gone. The table
// is written anew, in one transaction, when the daemon uses it first and whenever an element cannot be changed
// (somebody flushed the ruleset): journal and kernel agree afterwards.
package nft
