package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

const (
	ingress = "kubernetes.io/ingress-bandwidth"
	egress  = "kubernetes.io/egress-bandwidth"
)

// ifbs are the links of egress limits that belong to this instance.
func (n *node) ifbs() []string {
	sum := sha256.Sum256([]byte(n.cfg.Table))
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		n.t.Error(err)
	}
	var names []string
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "gi"+hex.EncodeToString(sum[:])[:4]) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// queue is the token bucket of a link, nil when it has none.
func queue(t *testing.T, name string) *netlink.Tbf {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	all, err := netlink.QdiscList(link)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range all {
		if tbf, ok := q.(*netlink.Tbf); ok {
			return tbf
		}
	}
	return nil
}

// overlimits is how often a queue of the link held a packet up.
func overlimits(t *testing.T, name string) uint32 {
	t.Helper()
	q := queue(t, name)
	if q == nil || q.Attrs().Statistics == nil || q.Attrs().Statistics.Queue == nil {
		t.Fatalf("link %s has no token bucket with statistics", name)
	}
	return q.Attrs().Statistics.Queue.Overlimits
}

// sends lets one namespace send to the address of another, from the first bytes on for a while, and returns the bytes that
// came in and how long that took with the way there. Both ends are reset before it returns: one that waits for the other to answer its FIN, through a limit that
// drops, keeps its namespace and its link alive for minutes.
func sends(t *testing.T, from, to string, addr netip.Addr, while time.Duration) (float64, time.Duration) {
	t.Helper()
	var l net.Listener
	inNS(t, to, func() (err error) { l, err = net.Listen("tcp", at(addr, 0).String()); return err })
	defer l.Close()
	var c net.Conn
	start := time.Now()
	inNS(t, from, func() (err error) { c, err = net.DialTimeout("tcp", l.Addr().String(), time.Minute); return err })
	var sending sync.WaitGroup
	defer sending.Wait()
	defer reset(c)
	r, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer reset(r)
	sending.Go(func() {
		for buf := make([]byte, 64<<10); ; {
			if _, err := c.Write(buf); err != nil {
				return // reset below, when the reader has had enough
			}
		}
	})
	_ = r.SetReadDeadline(start.Add(time.Minute))
	first, err := io.ReadFull(r, make([]byte, 1500))
	if err != nil {
		t.Fatal(err)
	}
	_ = r.SetReadDeadline(time.Now().Add(while))
	got, err := io.Copy(io.Discard, r)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes came, then: %v", got, err)
	}
	return float64(first) + float64(got), time.Since(start)
}

// reset closes a connection with nothing left of it.
func reset(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	c.Close()
}

// TestBandwidth limits a pod in both directions, for both families, and another not at all.
func TestBandwidth(t *testing.T) {
	n := newNode(t, dual)
	slow, free := n.pod(), n.pod()
	slow.Annotations = map[string]string{ingress: "8M", egress: "4M"}
	result, err := n.Attach(n.ctx, slow)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.detach(slow) })
	other, err := n.Attach(n.ctx, free)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.detach(free) })
	ifbs := n.ifbs()
	if len(ifbs) != 1 {
		t.Fatalf("links %v, want the one of the pod with an egress limit", ifbs)
	}
	host := bridge.HostLink(slow.ID)
	for link, rate := range map[string]uint64{host: 1e6, ifbs[0]: 5e5} {
		q := queue(t, link)
		if q == nil {
			t.Fatalf("link %s has no token bucket", link)
		}
		burst := float64(q.Buffer) / netlink.TickInUsec() * float64(rate) / 1e6
		if q.Rate != rate || burst < bridge.MinBurst/8*0.99 || burst > bridge.MinBurst/8*1.01 || q.Limit != uint32(bridge.MinBurst/8+rate/20) {
			t.Errorf("link %s: %d bytes/s, burst %.0f, limit %d", link, q.Rate, burst, q.Limit)
		}
	}
	if q := queue(t, bridge.HostLink(free.ID)); q != nil {
		t.Error("a pod without limits has a queue")
	}
	while := 300 * time.Millisecond
	within := func(what string, got float64, took time.Duration, rate float64) {
		t.Helper()
		most := bridge.MinBurst/8 + rate*took.Seconds()*1.5
		t.Logf("%s: %.0f bytes in %s, at most %.0f", what, got, took, most)
		if got > most {
			t.Errorf("%s: %.0f bytes in %s, want at most %.0f", what, got, took, most)
		}
	}
	for i, ip := range result.IPs {
		got, took := sends(t, free.NetNS, slow.NetNS, ip, while)
		within("ingress of "+ip.String(), got, took, 1e6)
		got, took = sends(t, slow.NetNS, free.NetNS, other.IPs[i], while)
		within("egress of "+ip.String(), got, took, 5e5)
	}
	if overlimits(t, host) == 0 || overlimits(t, ifbs[0]) == 0 {
		t.Error("a limit held no packet up")
	}
	// Everything that the pod's root can do leaves the egress limit as it is.
	inNS(t, slow.NetNS, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			qdiscs, err := netlink.QdiscList(l)
			if err != nil {
				return err
			}
			for _, q := range qdiscs {
				if q.Type() == "tbf" || q.Type() == "ingress" {
					t.Errorf("the pod has %s on %s", q.Type(), l.Attrs().Name)
				}
				_ = netlink.QdiscDel(q)
			}
		}
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetTxQLen(eth, 100000), netlink.LinkSetMTU(eth, 9000),
			netlink.QdiscReplace(&netlink.PfifoFast{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: eth.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}}))
	})
	got, took := sends(t, slow.NetNS, free.NetNS, other.IPs[0], while)
	within("egress of a privileged pod", got, took, 5e5)
	eventually(t, "a pod without limits sends so much that they are what limited the others", func() bool {
		got, took = sends(t, free.NetNS, "/proc/self/ns/net", netip.MustParseAddr("10.213.0.1"), while)
		t.Logf("no limit: %.0f bytes in %s", got, took)
		return got >= 2e6
	})
}

// TestBandwidthRates makes limits of all sizes.
func TestBandwidthRates(t *testing.T) {
	n := newNode(t)
	for rate, want := range map[string]uint64{"1k": 125, "10G": 125e7, "100G": 125e8, "1P": 125e12} {
		pod := n.pod()
		pod.Annotations = map[string]string{ingress: rate}
		n.attach(pod)
		q := queue(t, bridge.HostLink(pod.ID))
		if q == nil {
			t.Fatalf("%s: no token bucket", rate)
		}
		if q.Rate != want {
			t.Errorf("%s: %d bytes/s, want %d", rate, q.Rate, want)
		}
	}
	if ifbs := n.ifbs(); len(ifbs) > 0 {
		t.Errorf("links %v of pods without egress limits", ifbs)
	}
}

// TestBandwidthKilled looks for what limits leave behind when the daemon dies.
func TestBandwidthKilled(t *testing.T) {
	n := newNode(t)
	limited := func() Pod {
		pod := n.pod()
		pod.Annotations = map[string]string{ingress: "8M", egress: "8M"}
		n.attach(pod)
		return pod
	}
	live := limited()
	keep := n.ifbs()
	detached, dead, lost := limited(), limited(), limited()
	if len(n.ifbs()) != 4 {
		t.Fatalf("links %v, want four", n.ifbs())
	}
	n.detach(detached)
	if err := n.Networks.Close(); err != nil { // before the links' removal has come far
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(n.cfg.StateDir, "results/gantry-"+lost.ID+"-eth0")); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(n.cfg.StateDir, "attachments"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"k":"` + lost.ID + `"}` + "\n"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	n.open()
	if err := n.GC(n.ctx, []string{live.ID}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "only the live pod's link is left", func() bool { return slices.Equal(n.ifbs(), keep) })
	if _, err := netlink.LinkByName(bridge.HostLink(dead.ID)); err == nil {
		t.Error("the dead pod's link is left")
	}
	if overlimits(t, keep[0]) != 0 {
		t.Error("the live pod's limit counts packets that nobody sent")
	}
}

// TestBandwidthUndone attaches a pod again whose first attempt was undone behind its limits.
func TestBandwidthUndone(t *testing.T) {
	n := newNode(t)
	n.install("testplugin")
	list := func(do string) string {
		return `{"cniVersion":"1.0.0","name":"mixed","plugins":[
			{"type":"gantry-bridge","subnets":["10.213.9.0/24"],"capabilities":{"bandwidth":true}},
			{"type":"testplugin","log":"` + n.log() + `","do":{"ADD":"` + do + `"}}]}`
	}
	n.write("10-x.conflist", list("error"))
	n.uses("mixed")
	pod := n.pod()
	pod.Annotations = map[string]string{ingress: "8M", egress: "8M"}
	for range 3 {
		if _, err := n.Attach(n.ctx, pod); err == nil || !strings.Contains(err.Error(), "no luck with ADD") {
			t.Fatalf("%v, want the plugin's error", err)
		}
	}
	n.write("10-x.conflist", list("ok"))
	eventually(t, "the new list is in force", func() bool {
		l, err := n.list()
		return err == nil && strings.Contains(string(l.Bytes), `"ok"`)
	})
	n.attach(pod)
	if len(n.ifbs()) != 1 {
		t.Errorf("links %v, want one", n.ifbs())
	}
}

// TestBandwidthMany makes and removes limited pods at once, while the links of earlier ones are being deleted.
func TestBandwidthMany(t *testing.T) {
	n := newNode(t)
	queue := make(chan Pod, 24)
	for range cap(queue) {
		pod := n.pod()
		pod.Annotations = map[string]string{ingress: "8M", egress: "8M"}
		queue <- pod
	}
	close(queue)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for pod := range queue {
				for range 2 { // the second waits for the removal of the first's link
					if _, err := n.Attach(n.ctx, pod); err != nil {
						t.Error(err)
					}
					if err := errors.Join(n.Detach(n.ctx, pod), n.bridge.RemoveLink(pod.ID)); err != nil {
						t.Error(err)
					}
				}
				dropNS(t, pod.NetNS)
			}
		})
	}
	wg.Wait()
	eventually(t, "no link of a limit is left", func() bool { return len(n.ifbs()) == 0 })
}
