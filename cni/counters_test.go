package cni

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

// TestCounters compares what the node tells of a pod's interface with what the pod's namespace tells of it.
func TestCounters(t *testing.T) {
	n := newNode(t)
	pod := n.pod()
	addr := n.attach(pod)
	reaches(t, "", "tcp4", listen(t, pod.NetNS, "tcp4", at(addr, 0).String()), netip.Addr{})
	eventually(t, "both ends tell the same", func() bool { // a packet may pass between the two readings
		got, err := n.Counters([]string{pod.ID, "unknown"})
		if err != nil || len(got) != 1 || len(got[pod.ID]) != 1 || got[pod.ID][0].Name != ifName {
			t.Fatalf("counters %v, %v", got, err)
		}
		inside, err := bridge.NamespaceCounters(pod.NetNS)
		if err != nil || len(inside) != 1 {
			t.Fatalf("counters of the namespace %v, %v", inside, err)
		}
		c := got[pod.ID][0]
		return c == Interface(inside[0]) && c.RxBytes > 0 && c.TxBytes > 0 && c.RxBytes != c.TxBytes
	})
}

// TestCountersOfOtherPlugins reads them in the pod's namespace.
func TestCountersOfOtherPlugins(t *testing.T) {
	n := newNode(t)
	n.install("testplugin")
	n.write("10-net.conflist", n.conflist("net", nil))
	n.uses("net")
	pod := n.pod()
	inNS(t, pod.NetNS, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "aaa0"}, PeerName: ifName})
	})
	n.attach(pod)
	got, err := n.Counters([]string{pod.ID})
	if c := got[pod.ID]; err != nil || len(c) != 2 || c[0].Name != ifName || c[1].Name != "aaa0" {
		t.Errorf("counters %v, %v; want eth0 first, then the other", got, err)
	}
	n.detach(pod)
	if got, err := n.Counters([]string{pod.ID}); len(got) != 0 || err != nil {
		t.Errorf("counters of a detached pod: %v, %v", got, err)
	}
}

func BenchmarkCounters(b *testing.B) {
	n := newNode(b)
	var ids []string
	var ns []string
	for range 40 {
		pod := n.pod()
		n.attach(pod)
		ids, ns = append(ids, pod.ID), append(ns, pod.NetNS)
	}
	b.Run("host", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if got, err := n.Counters(ids); err != nil || len(got) != 40 {
				b.Fatal(len(got), err)
			}
		}
	})
	b.Run("namespaces", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for _, ns := range ns {
				if _, err := bridge.NamespaceCounters(ns); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
