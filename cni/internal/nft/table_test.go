package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
)

// TestIntervals checks the elements of prefix sets: adjacent ones join, inner ones go, ends are open.
func TestIntervals(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"10.0.0.0/24", "10.0.0.0 10.0.1.0)"},
		{"10.0.1.0/24 10.0.0.0/24", "10.0.0.0 10.0.2.0)"},
		{"10.0.0.0/16 10.0.9.0/24 10.9.0.0/16 fd00::/64", "10.0.0.0 10.1.0.0) 10.9.0.0 10.10.0.0)"},
		{"10.0.0.0/16 10.0.0.0/24 10.0.0.0/16", "10.0.0.0 10.1.0.0)"},
		{"fd00::/64", ""},
		{"224.0.0.0/4 240.0.0.0/4", "224.0.0.0"},
		{"0.0.0.0/0 10.0.0.0/8 255.255.255.255/32", "0.0.0.0"},
	} {
		var prefixes []netip.Prefix
		for _, p := range strings.Fields(c.in) {
			prefixes = append(prefixes, netip.MustParsePrefix(p))
		}
		var got []string
		for _, e := range intervals(prefixes, true) {
			a, _ := netip.AddrFromSlice(e.Key)
			s := a.String()
			if e.IntervalEnd {
				s += ")"
			}
			got = append(got, s)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: got %s, want %s", c.in, s, c.want)
		}
	}
}

func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			tb.Fatal("needs root to make nftables tables; CI must run it as root")
		}
		tb.Skip("needs root to make nftables tables")
	}
}

func newTable(t testing.TB, dir string) *Table {
	t.Helper()
	needRoot(t)
	known := map[string]Network{"net": {Bridge: "gtnft0", Subnets: []netip.Prefix{netip.MustParsePrefix("10.212.0.0/16")}, Masquerade: true, Direct: []netip.Prefix{netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("::/0")}}}
	table, err := Open(t.Context(), fmt.Sprintf("gantry-nft-%d", os.Getpid()), filepath.Join(dir, "ports"), known)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := table.Delete(); err != nil {
			t.Error(err)
		}
	})
	return table
}

func port(protocol, host, target string) Port {
	h := netip.MustParseAddrPort(host)
	return Port{protocol, h.Addr(), h.Port(), netip.MustParseAddrPort(target)}
}

// elements counts what the kernel has in a map.
func elements(t *testing.T, table *Table, name string) int {
	t.Helper()
	c := &nftables.Conn{}
	set, err := c.GetSetByName(&nftables.Table{Name: table.name, Family: nftables.TableFamilyINet}, name)
	if err != nil {
		t.Fatal(err)
	}
	e, err := c.GetSetElements(set)
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

func TestPublish(t *testing.T) {
	dir := t.TempDir()
	table := newTable(t, dir)
	if err := table.Publish(t.Context(), "a", "ns/a", []Port{port("tcp", "0.0.0.0:80", "10.212.0.2:8080"), port("udp", "192.0.2.1:80", "10.212.0.2:53"),
		port("sctp", "[::]:80", "[fd00::2]:80"), port("tcp", "[fd01::1]:80", "[fd00::2]:80")}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"anyports4": 1, "ports4": 1, "anyports6": 1, "ports6": 1} {
		if got := elements(t, table, name); got != want {
			t.Errorf("%s has %d elements, want %d", name, got, want)
		}
	}
	for _, p := range []Port{port("tcp", "192.0.2.1:80", "10.212.0.3:1"), port("udp", "0.0.0.0:80", "10.212.0.3:1"), port("sctp", "[fd01::1]:80", "[fd00::3]:1")} {
		err := table.Publish(t.Context(), "b", "ns/b", []Port{port("tcp", "0.0.0.0:81", "10.212.0.3:1"), p})
		if !errors.Is(err, errdefs.ErrAlreadyExists) || !strings.Contains(err.Error(), "taken by pod ns/a (a)") {
			t.Errorf("%s: %v, want an error that names the holder", p, err)
		}
	}
	if err := table.Publish(t.Context(), "b", "ns/b", []Port{port("tcp", "0.0.0.0:81", "10.212.0.3:1"), port("tcp", "0.0.0.0:81", "10.212.0.3:2")}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("one port twice: %v, want already exists", err)
	}
	if err := table.Publish(t.Context(), "b", "ns/b", []Port{port("tcp", "0.0.0.0:81", "10.212.0.3:1"), port("tcp", "192.0.2.2:82", "10.212.0.3:1")}); err != nil {
		t.Errorf("what failed before left something: %v", err)
	}

	// Another process finds it all, and sweeps.
	other, err := Open(t.Context(), table.name, filepath.Join(dir, "ports"), table.networks)
	if err != nil {
		t.Fatal(err)
	}
	if released, err := other.Sweep(t.Context(), map[string]bool{"b": true}); err != nil || released != 4 {
		t.Errorf("released %d, %v, want 4", released, err)
	}
	if got := elements(t, table, "anyports4") + elements(t, table, "ports4"); got != 2 {
		t.Errorf("%d elements left, want 2", got)
	}
	if err := errors.Join(other.Unpublish(t.Context(), "b"), other.Unpublish(t.Context(), "b"), other.Close()); err != nil {
		t.Error(err)
	}
	if got := elements(t, table, "anyports4") + elements(t, table, "ports4"); got != 0 {
		t.Errorf("%d elements left, want 0", got)
	}
	if other, err = Open(t.Context(), table.name, filepath.Join(dir, "ports"), nil); err != nil || other.Len() != 0 {
		t.Errorf("%d ports left, %v", other.Len(), err)
	}
}

// TestManyPorts writes a table that does not fit into one message.
func TestManyPorts(t *testing.T) {
	table := newTable(t, t.TempDir())
	var ports []Port
	for i := range 3000 {
		ports = append(ports, Port{"tcp", netip.IPv4Unspecified(), uint16(20000 + i), netip.MustParseAddrPort("10.212.0.2:80")})
	}
	if err := table.Publish(t.Context(), "a", "ns/a", ports); err != nil {
		t.Fatal(err)
	}
	if got := elements(t, table, "anyports4"); got != len(ports) {
		t.Errorf("%d elements, want %d", got, len(ports))
	}
	if err := table.Unpublish(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := elements(t, table, "anyports4"); got != 0 {
		t.Errorf("%d elements left", got)
	}
}

func TestBadPorts(t *testing.T) {
	table, err := Open(t.Context(), "unused", filepath.Join(t.TempDir(), "ports"), map[string]Network{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []Port{
		port("dccp", "0.0.0.0:1", "10.0.0.1:1"), port("tcp", "0.0.0.0:0", "10.0.0.1:1"), port("tcp", "0.0.0.0:1", "10.0.0.1:0"),
		port("tcp", "[::]:1", "10.0.0.1:1"), port("tcp", "[::ffff:1.2.3.4]:1", "10.0.0.1:1"), port("tcp", "[fe80::1%eth0]:1", "[fd00::1]:1"), {Protocol: "tcp", HostPort: 1},
	} {
		if err := table.Publish(t.Context(), "a", "ns/a", []Port{p}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%+v: %v, want invalid argument", p, err)
		}
	}
}

// FuzzParsePorts feeds records; what is accepted must be possible to write into a table.
func FuzzParsePorts(f *testing.F) {
	f.Add([]byte(`{"pod":"ns/a","ports":[{"protocol":"tcp","hostIP":"0.0.0.0","hostPort":80,"target":"10.0.0.2:80"}]}`))
	f.Add([]byte(`[{"protocol":"tcp","hostIP":"0.0.0.0","hostPort":80,"target":"10.0.0.2:80"}]`))
	s := newSets(&nftables.Table{Name: "x", Family: nftables.TableFamilyINet})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parsePorts(data)
		if err != nil {
			return
		}
		for _, p := range r.Ports {
			if set, e := s.element(p); uint32(len(e.Key)) != set.KeyType.Bytes || uint32(len(e.Val)) != set.DataType.Bytes {
				t.Errorf("%+v makes an element that does not fit %s", p, set.Name)
			}
		}
	})
}

// TestSweepFails lets the journal fail while a dead pod's ports are taken away: nobody else gets them, since the next
// start reads the record again.
func TestSweepFails(t *testing.T) {
	dir := t.TempDir()
	table := newTable(t, dir)
	if err := table.Publish(t.Context(), "a", "ns/a", []Port{port("tcp", "0.0.0.0:80", "10.212.0.2:80")}); err != nil {
		t.Fatal(err)
	}
	if err := table.journal.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := table.Sweep(t.Context(), nil); err == nil {
		t.Fatal("a record was deleted in a closed journal")
	}
	if got := elements(t, table, "anyports4"); got != 0 {
		t.Errorf("%d elements left, want 0", got)
	}
	err := table.Publish(t.Context(), "b", "ns/b", []Port{port("tcp", "0.0.0.0:80", "10.212.0.3:80")})
	if !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("%v, want already exists", err)
	}
}

// TestOldRecord opens the host ports of a daemon that recorded them without the pod's name: they stay the pod's.
func TestOldRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports")
	if err := os.WriteFile(path, []byte(`{"k":"a","v":[{"protocol":"tcp","hostIP":"0.0.0.0","hostPort":80,"target":"10.0.0.2:80"}]}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	table, err := Open(t.Context(), "unused", path, map[string]Network{})
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	if want := port("tcp", "0.0.0.0:80", "10.0.0.2:80"); len(table.pods["a"].Ports) != 1 || table.pods["a"].Ports[0] != want {
		t.Errorf("%+v, want %s", table.pods["a"], want)
	}
}
