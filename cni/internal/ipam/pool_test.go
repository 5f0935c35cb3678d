package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
)

func mustRange(t *testing.T, subnet string) []Range {
	t.Helper()
	r, err := NewRange(netip.MustParsePrefix(subnet), netip.Addr{}, netip.Addr{}, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	return []Range{r}
}

func mustOpen(t *testing.T, dir string) *Pool {
	t.Helper()
	p, err := Open(t.Context(), "net", filepath.Join(dir, "leases"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustAllocate(t *testing.T, p *Pool, pod string, sets ...[]Range) []string {
	t.Helper()
	got, err := p.Allocate(pod, sets)
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, a := range got {
		s = append(s, a.Prefix.String())
	}
	return s
}

func TestNewRange(t *testing.T) {
	for _, c := range []struct{ subnet, first, last, gateway, want string }{
		{"10.1.2.3/24", "", "", "", "10.1.2.1-10.1.2.254 gw 10.1.2.1"},
		{"10.1.2.0/30", "", "", "", "10.1.2.1-10.1.2.2 gw 10.1.2.1"},
		{"10.1.2.0/24", "10.1.2.10", "10.1.2.20", "10.1.2.254", "10.1.2.10-10.1.2.20 gw 10.1.2.254"},
		{"fd00::/64", "", "", "", "fd00::1-fd00::ffff:ffff:ffff:ffff gw fd00::1"},
		{"10.1.2.0/31", "", "", "", "no room"},
		{"fd00::/127", "", "", "", "no room"},
		{"10.1.2.0/24", "10.1.3.1", "", "", "rangeStart"},
		{"10.1.2.0/24", "", "10.1.2.255", "", "rangeEnd"},
		{"10.1.2.0/24", "", "", "10.1.2.0", "gateway"},
		{"10.1.2.0/24", "fd00::1", "", "", "rangeStart"},
		{"10.1.2.0/24", "10.1.2.9", "10.1.2.8", "", "is empty"},
		{"10.1.2.0/24", "10.1.2.9", "10.1.2.9", "10.1.2.9", "is empty"},
		{"127.0.0.0/8", "", "", "", "not of unicast"},
		{"224.0.0.0/8", "", "", "", "not of unicast"},
		{"0.0.0.0/0", "", "", "", "not of unicast"},
		{"::ffff:10.0.0.0/120", "", "", "", "subnet"},
	} {
		addr := func(s string) netip.Addr {
			if s == "" {
				return netip.Addr{}
			}
			return netip.MustParseAddr(s)
		}
		r, err := NewRange(netip.MustParsePrefix(c.subnet), addr(c.first), addr(c.last), addr(c.gateway))
		got := fmt.Sprintf("%s gw %s", r, r.Gateway)
		if err != nil {
			got = err.Error()
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("%v: %v is not invalid argument", c, err)
			}
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%v: got %s", c, got)
		}
	}
}

func TestAllocate(t *testing.T) {
	dir := t.TempDir()
	p := mustOpen(t, dir)
	v4, v6 := mustRange(t, "10.0.0.0/29"), mustRange(t, "fd00::/64")
	if got := mustAllocate(t, p, "a", v4, v6); fmt.Sprint(got) != "[10.0.0.2/29 fd00::2/64]" {
		t.Errorf("got %v", got)
	}
	if _, err := p.Allocate("a", [][]Range{v4}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("a second time: %v", err)
	}
	if err := p.Release("a"); err != nil {
		t.Fatal(err)
	}
	if err := p.Release("a"); err != nil { // again is no error
		t.Fatal(err)
	}
	// Round the range: the freed address is the last to come back.
	var got []string
	for i := range 5 {
		got = append(got, mustAllocate(t, p, fmt.Sprint("b", i), v4)...)
	}
	if want := "[10.0.0.3/29 10.0.0.4/29 10.0.0.5/29 10.0.0.6/29 10.0.0.2/29]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	// Exhausted: an error that names the range, and nothing of the other set is kept.
	_, err := p.Allocate("c", [][]Range{v6, v4})
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "10.0.0.1-10.0.0.6") {
		t.Errorf("exhausted: %v", err)
	}
	if p.Len() != 5 {
		t.Errorf("%d addresses in use, want 5", p.Len())
	}
	// The next range of the set serves.
	if got := mustAllocate(t, p, "c", append(v4, mustRange(t, "10.0.1.0/29")...)); got[0] != "10.0.1.2/29" {
		t.Errorf("got %v", got)
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	p := mustOpen(t, dir)
	v4 := mustRange(t, "10.0.0.0/24")
	mustAllocate(t, p, "a", v4)
	mustAllocate(t, p, "b", v4)
	f, err := os.OpenFile(filepath.Join(dir, "leases"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"k":"junk","v":"x"}` + "\n" + `{"k":"10.0.0.9","v":"z"}` + "\n" + `{"k":"10.0.0.2"`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	p = mustOpen(t, dir) // a was not released: that line has no end
	seen := map[string]bool{"10.0.0.2/24": true, "10.0.0.3/24": true, "10.0.0.9/24": true}
	for i := range 10 {
		if got := mustAllocate(t, p, fmt.Sprint("c", i), v4)[0]; seen[got] {
			t.Errorf("%s was handed out twice", got)
		}
	}
	if released, err := p.Sweep(map[string]bool{"b": true}); err != nil || released != 12 {
		t.Errorf("released %d, %v, want 12", released, err)
	}
	if p = mustOpen(t, dir); p.Len() != 1 {
		t.Errorf("%d leases left, want b's", p.Len())
	}
}

func TestConcurrent(t *testing.T) {
	p := mustOpen(t, t.TempDir())
	v4 := mustRange(t, "10.0.0.0/26") // 61 addresses for 16 pods that come and go
	var mu sync.Mutex
	used := map[netip.Prefix]string{}
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 50 {
				pod := fmt.Sprintf("w%d-%d", w, i)
				got, err := p.Allocate(pod, [][]Range{v4})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if other := used[got[0].Prefix]; other != "" {
					t.Errorf("%s and %s have %s", other, pod, got[0].Prefix)
				}
				used[got[0].Prefix] = pod
				mu.Unlock()
				mu.Lock()
				delete(used, got[0].Prefix)
				mu.Unlock()
				if err := p.Release(pod); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkAllocate(b *testing.B) {
	p, err := Open(b.Context(), "net", filepath.Join(b.TempDir(), "leases"))
	if err != nil {
		b.Fatal(err)
	}
	r, _ := NewRange(netip.MustParsePrefix("10.0.0.0/16"), netip.Addr{}, netip.Addr{}, netip.Addr{})
	for b.Loop() {
		if _, err := p.Allocate("a", [][]Range{{r}}); err != nil {
			b.Fatal(err)
		}
		if err := p.Release("a"); err != nil {
			b.Fatal(err)
		}
	}
}

// TestAllocateBesideOthers passes over what a pool of another network holds.
func TestAllocateBesideOthers(t *testing.T) {
	a, b := mustOpen(t, t.TempDir()), mustOpen(t, t.TempDir())
	defer a.Close()
	defer b.Close()
	set := [][]Range{mustRange(t, "10.0.0.0/29")}
	mustAllocate(t, a, "a1", set...)
	mustAllocate(t, a, "a2", set...)
	if err := a.Release("a1"); err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		addrs, err := b.Allocate(fmt.Sprint("b", len(got)), set, a)
		if err != nil {
			if !errors.Is(err, errdefs.ErrUnavailable) {
				t.Error(err)
			}
			break
		}
		got = append(got, addrs[0].Prefix.Addr().String())
	}
	if s := strings.Join(got, " "); s != "10.0.0.2 10.0.0.4 10.0.0.5 10.0.0.6" {
		t.Errorf("leased %s beside 10.0.0.3", s)
	}
}
