package cni

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/gantry-cri/gantry/cni/internal/bridge"
)

// TestLostNetworkRecord loses a network's record in several ways: what pods have stays theirs, and the bridge is removed
// with the rest, whether a pod came after that or not.
func TestLostNetworkRecord(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"removed":   os.Remove,
		"garbage":   func(path string) error { return os.WriteFile(path, []byte("\x00\xff{"), 0o600) },
		"folder":    func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
		"all of it": func(path string) error { return os.RemoveAll(filepath.Dir(path)) },
	} {
		for _, another := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				n := newNode(t) // its audit wants the bridge gone
				live, gone := n.pod(), n.pod()
				ip := n.attach(live)
				n.attach(gone)
				path := filepath.Join(n.cfg.StateDir, "networks/gantry/network.json")
				if err := lose(path); err != nil {
					t.Fatal(err)
				}
				n.restart()
				if err := n.GC(n.ctx, []string{live.ID}); err != nil {
					t.Fatal(err)
				}
				if _, err := netlink.LinkByName(bridge.HostLink(gone.ID)); err == nil {
					t.Error("the link of the pod that is gone is left")
				}
				if _, err := netlink.LinkByName(bridge.HostLink(live.ID)); err != nil {
					t.Errorf("the link of the pod that lives: %v", err)
				}
				if another {
					if n.attach(n.pod()) == ip {
						t.Error("the address of the pod that lives was given out again")
					}
				}
				if err := os.RemoveAll(path + ".damaged"); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestHostileNetworkRecord has records that read well name what is not this instance's: an interface, the bridge of
// somebody else, and that of another instance with pods on it. All of that stays; what no network can be is set aside.
func TestHostileNetworkRecord(t *testing.T) {
	other := newNode(t, func(c *Config) { c.Bridge, c.Table = c.Bridge+"b", c.Table+"-b" })
	theirs := other.pod()
	other.attach(theirs)
	n := newNode(t)
	victims := []string{n.cfg.Bridge + "d", n.cfg.Bridge + "f"}
	for _, l := range []netlink.Link{
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: victims[0]}, PeerName: n.cfg.Bridge + "p"},
		&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: victims[1]}},
	} {
		if err := netlink.LinkAdd(l); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := netlink.LinkDel(l); err != nil {
				t.Errorf("%s: %v", l.Attrs().Name, err)
			}
		})
	}
	path := filepath.Join(n.cfg.StateDir, "networks/gantry/network.json")
	record := func(fields map[string]any) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(fields)
		if err == nil {
			err = os.WriteFile(path, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		n.restart()
	}
	for _, serving := range append(victims, other.cfg.Bridge) {
		record(map[string]any{"bridge": serving, "made": append(victims, other.cfg.Bridge, "lo"), "subnets": []string{"10.213.0.0/16"}})
		if err := n.GC(n.ctx, nil); err != nil {
			t.Error(err)
		}
		if err := n.Teardown(n.ctx); err != nil {
			t.Error(err)
		}
		for _, link := range append(victims, other.cfg.Bridge, bridge.HostLink(theirs.ID), "lo") {
			if _, err := netlink.LinkByName(link); err != nil {
				t.Errorf("with %s: %v", serving, err)
			}
		}
	}
	for what, fields := range map[string]map[string]any{
		"bridge":     {"bridge": "../eth0"},
		"made":       {"bridge": "br0", "made": []string{"a/b"}},
		"many":       {"bridge": "br0", "made": strings.Split(strings.Repeat("br0 ", 1000000), " ")},
		"subnet":     {"bridge": "br0", "subnets": []string{"10.213.0.1/16"}},
		"no subnet":  {"bridge": "br0", "subnets": []string{""}},
		"masquerade": {"bridge": "br0", "nonMasqueradeCIDRs": []string{"::ffff:10.0.0.0/104"}},
	} {
		record(fields)
		if err := os.Remove(path + ".damaged"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
