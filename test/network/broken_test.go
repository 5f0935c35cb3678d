package network

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gantry-cri/gantry/test/harness"
)

// What somebody takes away by hand neither keeps a pod from being removed nor the next one from working.
func TestTakenAway(t *testing.T) {
	n := newNode(t, harness.Config{Subnets: dual})
	n.pull()
	local := netip.MustParseAddr("127.0.0.1")
	answers := func(t *testing.T, what string, port uint16) {
		t.Helper()
		n.in(t).serving(netip.AddrPortFrom(local, port))
		expect(t, here, patience, []question{{what, "tcp", netip.AddrPortFrom(local, port), "10.212.0.1"}})
	}
	first := n.pod("first", ports(port(tcp, 18080, 80, ""))).serve()
	answers(t, "a pod", 18080)

	t.Run("table", func(t *testing.T) {
		must(t, harness.FlushRuleset())
		next := n.in(t).pod("after-flush", ports(port(tcp, 18081, 80, ""))).serve()
		answers(t, "the next pod", 18081)
		answers(t, "the pod before it", 18080)
		must(t, harness.FlushRuleset())
		if err := next.remove(); err != nil {
			t.Errorf("removing a pod without the table: %v", err)
		}
		answers(t, "the other pod", 18080)
	})
	t.Run("namespace", func(t *testing.T) {
		p := n.in(t).pod("lost", ports(port(tcp, 18082, 80, "")))
		pin := filepath.Join(n.Dir, "run/pods", p.id, "ns/net")
		must(t, unix.Unmount(pin, unix.MNT_DETACH))
		must(t, os.Remove(pin))
		if err := p.remove(); err != nil {
			t.Errorf("removing a pod whose namespace is gone: %v", err)
		}
		n.in(t).pod("same-port", ports(port(tcp, 18082, 80, "")))
	})
	t.Run("link", func(t *testing.T) {
		p := n.in(t).pod("unplugged").serve()
		index, err := strconv.Atoi(strings.TrimSpace(p.exec("cat", "/sys/class/net/eth0/iflink"))) // of its other end
		must(t, err)
		link, err := net.InterfaceByIndex(index)
		must(t, err)
		must(t, harness.DeleteLink(link.Name))
		if err := p.remove(); err != nil {
			t.Errorf("removing a pod whose link is gone: %v", err)
		}
	})
	t.Run("bridge", func(t *testing.T) { // last: the pods that were on it are cut off
		must(t, harness.DeleteLink(n.Bridge))
		n.in(t).pod("after-bridge", ports(port(tcp, 18083, 80, ""))).serve()
		answers(t, "the next pod", 18083)
		if err := first.remove(); err != nil {
			t.Errorf("removing a pod that lost its bridge: %v", err)
		}
	})
}

// A host port that a pod has is no other's, and the error says whose it is.
func TestHostPortTaken(t *testing.T) {
	n := newNode(t, harness.Config{Subnets: dual})
	holder := n.pod("holder", ports(port(tcp, 18080, 80, ""), port(udp, 18081, 53, "192.0.2.1")))
	for name, change := range map[string]podChange{
		"same":               ports(port(tcp, 18080, 81, "")),
		"one-address-of-all": ports(port(tcp, 18079, 80, ""), port(tcp, 18080, 80, "192.0.2.1")),
		"all-of-one-address": ports(port(udp, 18081, 53, "0.0.0.0")),
	} {
		_, err := n.try(name, change)
		if status.Code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), "net/holder ("+holder.id+")") || !strings.Contains(err.Error(), "1808") {
			t.Errorf("%s: %v, want AlreadyExists with the port and its holder net/holder (%s)", name, err, holder.id)
		}
	}
	n.pod("others", ports(port(udp, 18080, 80, ""), port(udp, 18081, 53, "192.0.2.2"), port(tcp, 18079, 80, ""))) // nothing of those refused is kept
	must(t, n.Kill())
	must(t, n.StartDaemon(t.Context()))
	if _, err := n.try("late", ports(port(tcp, 18080, 80, ""))); status.Code(err) != codes.AlreadyExists {
		t.Errorf("after a restart: %v, want AlreadyExists", err)
	}
	must(t, holder.remove())
	n.pod("heir", ports(port(tcp, 18080, 80, "")))
}
