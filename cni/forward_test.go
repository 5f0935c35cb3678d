package cni

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestForwardDrops has other people's firewalls drop what the node forwards, and lets them accept it in the way that
// gantry doctor says.
func TestForwardDrops(t *testing.T) {
	if !apart(t) {
		return
	}
	n := newNode(t)
	out, node, host := outside(t)
	pod := n.pod(PortMapping{Protocol: "tcp", HostPort: 18060, ContainerPort: 80})
	n.attach(pod)
	listen(t, pod.NetNS, "tcp", "0.0.0.0:80")
	run := func(t *testing.T, lines ...string) {
		t.Helper()
		for _, line := range lines {
			line = strings.ReplaceAll(line, "BR", n.cfg.Bridge)
			if text, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", line, err, text)
			}
		}
	}
	for _, c := range []struct {
		name        string
		set, undo   []string
		almost, all []string // what accepts not enough, and enough
		want        ForwardDrop
	}{
		{"iptables", []string{"iptables -P FORWARD DROP"}, []string{"iptables -P FORWARD ACCEPT; iptables -F FORWARD"},
			[]string{"iptables -I FORWARD -o BR -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "iptables -I FORWARD -i BR -j ACCEPT", "iptables -I FORWARD -o BRx -j ACCEPT"},
			[]string{"iptables -I FORWARD -o BR -j ACCEPT"}, ForwardDrop{Family: "ip", Table: "filter", Chain: "FORWARD"}},
		{"nft", []string{"nft add table inet fw; nft add chain inet fw through '{ type filter hook forward priority 0; policy drop; }'"}, []string{"nft delete table inet fw"},
			[]string{"nft add rule inet fw through iifname BR tcp dport 80 accept", "nft add rule inet fw through oifname != BR accept"},
			[]string{"nft add chain inet fw pods", "nft add rule inet fw pods counter accept", "nft add rule inet fw through oifname BR jump pods", "nft insert rule inet fw through iifname BR accept"},
			ForwardDrop{Family: "inet", Table: "fw", Chain: "through"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := func(want ...ForwardDrop) {
				t.Helper()
				if got, err := ForwardDrops(n.cfg.Bridge); err != nil || !slices.Equal(got, want) {
					t.Errorf("%v, %v; want %v", got, err, want)
				}
			}
			check()
			run(t, c.set...)
			t.Cleanup(func() { run(t, c.undo...) })
			check(c.want)
			for _, line := range c.almost {
				run(t, line)
				check(c.want)
			}
			if _, err := ask(t, out, "tcp", at(node[0], 18060), 300*time.Millisecond); err == nil {
				t.Error("a pod is reached through a chain that drops; this test shows nothing")
			}
			run(t, c.all...)
			check()
			reaches(t, out, "tcp", at(node[0], 18060), host[0])
			reaches(t, pod.NetNS, "tcp", listen(t, out, "tcp", at(host[0], 0).String()), netip.Addr{})
		})
	}
}
