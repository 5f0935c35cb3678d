package cni

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestLostLeases loses the leases in several ways: what a pod that lives has is not given out again, and is free when it
// has gone.
func TestLostLeases(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"removed": os.Remove,
		"empty":   func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"garbage": func(path string) error { return os.WriteFile(path, []byte("\x00\xff{\n"), 0o600) },
		"folder":  func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, dual)
			live := n.pod()
			had, err := n.Attach(n.ctx, live)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(n.cfg.StateDir, "networks/gantry/leases")
			if err := lose(path); err != nil {
				t.Fatal(err)
			}
			n.restart()
			if err := n.GC(n.ctx, []string{live.ID}); err != nil {
				t.Fatal(err)
			}
			if addresses, _ := n.bridge.InUse(); addresses != len(had.IPs) {
				t.Errorf("%d addresses are in use, want the %d of the pod that lives", addresses, len(had.IPs))
			}
			other := n.pod()
			next, err := n.Attach(n.ctx, other)
			if err != nil {
				t.Fatal(err)
			}
			for _, ip := range next.IPs {
				if slices.Contains(had.IPs, ip) {
					t.Errorf("%s of the pod that lives was given out again", ip)
				}
			}
			n.detach(live)
			if addresses, _ := n.bridge.InUse(); addresses != len(next.IPs) {
				t.Errorf("%d addresses are in use when that pod has gone, want %d", addresses, len(next.IPs))
			}
			n.detach(other)
			if err := os.RemoveAll(path + ".damaged"); err != nil {
				t.Error(err)
			}
		})
	}
}
