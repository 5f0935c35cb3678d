package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ownNetwork moves the test to a network namespace of its own. It must not start goroutines that need it.
func ownNetwork(tb testing.TB) {
	tb.Helper()
	needRoot(tb)
	runtime.LockOSThread()
	old, err := netns.Get()
	if err != nil {
		tb.Fatal(err)
	}
	own, err := netns.New()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		own.Close()
		if err := netns.Set(old); err != nil {
			tb.Fatal(err) // the thread ends with the goroutine
		}
		old.Close()
		runtime.UnlockOSThread()
	})
}

// generation is how often the namespace's rules have changed: once for each transaction.
func generation(tb testing.TB) uint32 {
	tb.Helper()
	const getGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | 16 // NFT_MSG_GETGEN
	req := nl.NewNetlinkRequest(getGeneration, 0)
	req.AddData(&nl.Nfgenmsg{})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil || len(msgs) != 1 {
		tb.Fatalf("%d answers, %v", len(msgs), err)
	}
	attrs, err := nl.ParseRouteAttr(msgs[0][nl.SizeofNfgenmsg:])
	if err != nil {
		tb.Fatal(err)
	}
	for _, a := range attrs {
		if a.Attr.Type == 1 { // NFTA_GEN_ID
			return binary.BigEndian.Uint32(a.Value)
		}
	}
	tb.Fatal("no generation")
	return 0
}

// twoPorts are those of pod i.
func twoPorts(i int) []Port {
	target := netip.AddrFrom4([4]byte{10, 212, byte(i >> 8), byte(i)})
	return []Port{{"tcp", netip.IPv4Unspecified(), uint16(20000 + 2*i), netip.AddrPortFrom(target, 80)},
		{"tcp", netip.IPv4Unspecified(), uint16(20001 + 2*i), netip.AddrPortFrom(target, 81)}}
}

func publish(tb testing.TB, table *Table, pods int) {
	tb.Helper()
	for i := range pods {
		if err := table.Publish(tb.Context(), fmt.Sprint(i), "ns/pod", twoPorts(i)); err != nil {
			tb.Fatal(err)
		}
	}
}

// TestTransactions counts transactions: one for a pod, however many there are, and one for all of them at start.
func TestTransactions(t *testing.T) {
	ownNetwork(t)
	dir := t.TempDir()
	table := newTable(t, dir)
	const pods = 500
	before := generation(t)
	publish(t, table, pods)
	if got := generation(t) - before; got != pods {
		t.Errorf("%d transactions for %d pods", got, pods)
	}
	before = generation(t)
	if err := table.Unpublish(t.Context(), "7"); err != nil {
		t.Fatal(err)
	}
	if got := generation(t) - before; got != 1 {
		t.Errorf("%d transactions for the end of a pod, want 1", got)
	}

	live := map[string]bool{}
	for i := range pods {
		live[fmt.Sprint(i)] = true
	}
	restarted, err := Open(t.Context(), table.name, filepath.Join(dir, "ports"), table.networks)
	if err != nil {
		t.Fatal(err)
	}
	before = generation(t)
	if released, err := restarted.Sweep(t.Context(), live); err != nil || released != 0 {
		t.Errorf("released %d, %v", released, err)
	}
	if got := generation(t) - before; got != 1 {
		t.Errorf("%d transactions for the whole table at start, want 1", got)
	}
	if got := elements(t, restarted, "anyports4"); got != 2*(pods-1) {
		t.Errorf("%d elements, want %d", got, 2*(pods-1))
	}
	if err := restarted.Close(); err != nil {
		t.Error(err)
	}
}

// BenchmarkPublish is a pod with two host ports that comes and goes beside others.
func BenchmarkPublish(b *testing.B) {
	for _, pods := range []int{1, 100, 500} {
		b.Run(fmt.Sprintf("pods=%d", pods), func(b *testing.B) {
			ownNetwork(b)
			table := newTable(b, b.TempDir())
			publish(b, table, pods)
			ports := twoPorts(pods)
			for b.Loop() {
				if err := table.Publish(b.Context(), "one more", "ns/pod", ports); err != nil {
					b.Fatal(err)
				}
				if err := table.Unpublish(b.Context(), "one more"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
