package nft

import "os"

// bridgedHooks tells for IPv4 and IPv6 whether packets between two ports of a bridge pass the node's tables, which the
// module br_netfilter is for. Then the answer of a pod that another one called by a service's address is translated
// back on its way, and nobody need be masqueraded for it. Else the answer must be sent to the node for that.
type bridgedHooks [2]bool

func readBridgedHooks() (on bridgedHooks) {
	for i, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
		value, err := os.ReadFile("/proc/sys/net/bridge/" + name) // absent without the module
		on[i] = err == nil && len(value) > 0 && value[0] == '1'
	}
	return on
}
