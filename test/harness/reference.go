package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// referencePlugins is where Debian's containernetworking-plugins has them.
const referencePlugins = "/usr/lib/cni"

// ReferenceSubnets are the addresses of pods of [NewWithReferencePlugins].
var ReferenceSubnets = [2]netip.Prefix{netip.MustParsePrefix("10.211.0.0/24"), netip.MustParsePrefix("fd00:211::/64")}

// NewWithReferencePlugins is [New] with a network of the CNI project's plugins bridge, host-local and portmap. What they
// make for the node, a bridge and tables of iptables, is taken away with the instance. leases are the addresses in use.
func NewWithReferencePlugins(t testing.TB, cfg Config) (i *Instance, leases func() []string) {
	t.Helper()
	Require(t)
	if _, err := os.Stat(filepath.Join(referencePlugins, "portmap")); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no reference plugins: %v; hack/install-deps.sh test installs them", err)
		}
		t.Skipf("no reference plugins: %v", err)
	}
	const name, bridge = "reference", "gtref0"
	conf, data := t.TempDir(), t.TempDir()
	var ranges [][]map[string]string
	for _, s := range ReferenceSubnets {
		ranges = append(ranges, []map[string]string{{"subnet": s.String()}})
	}
	list, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": name, "plugins": []any{
		map[string]any{"type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": true, "hairpinMode": true,
			"ipam": map[string]any{"type": "host-local", "dataDir": data, "ranges": ranges, "routes": []map[string]string{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}}}},
		map[string]any{"type": "portmap", "snat": true, "capabilities": map[string]bool{"portMappings": true}},
	}})
	if err == nil {
		err = os.WriteFile(filepath.Join(conf, "10-reference.conflist"), list, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	before, err := tableNames()
	if err != nil {
		t.Fatal(err)
	}
	cfg.CNIConf, cfg.Flags = conf, append(cfg.Flags, "--cni-bin-dir", referencePlugins)
	i = New(t, cfg)
	t.Cleanup(func() {
		if err := removeReferenceNetwork(bridge, before); err != nil {
			t.Errorf("removing what the reference plugins made: %v", err)
		}
	})
	return i, func() (addresses []string) {
		entries, err := os.ReadDir(filepath.Join(data, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		for _, e := range entries {
			if _, err := netip.ParseAddr(e.Name()); err == nil {
				addresses = append(addresses, e.Name())
			}
		}
		return addresses
	}
}

func tableNames() (names []string, err error) {
	tables, err := (&nftables.Conn{}).ListTables()
	for _, t := range tables {
		names = append(names, fmt.Sprint(t.Family, t.Name))
	}
	return names, err
}

func removeReferenceNetwork(bridge string, kept []string) error {
	var errs []error
	if l, err := netlink.LinkByName(bridge); err == nil {
		errs = append(errs, netlink.LinkDel(l))
	}
	c := &nftables.Conn{}
	tables, err := c.ListTables()
	errs = append(errs, err)
	for _, t := range tables {
		isIP := t.Family == nftables.TableFamilyIPv4 || t.Family == nftables.TableFamilyIPv6 // where iptables has its own
		if isIP && !slices.Contains(kept, fmt.Sprint(t.Family, t.Name)) {
			c.DelTable(t)
		}
	}
	return errors.Join(append(errs, c.Flush())...)
}
