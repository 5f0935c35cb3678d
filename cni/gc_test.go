package cni

import (
	"os"
	"path/filepath"
	"testing"
)

// TestLostRecord knows a pod by libcni's cache whose record is lost, wherever the cache is: its addresses are freed.
func TestLostRecord(t *testing.T) {
	for _, name := range []string{"built in", "plugin"} {
		t.Run(name, func(t *testing.T) {
			run := t.TempDir()
			n := newNode(t, func(c *Config) { c.RunDir = run })
			if name == "plugin" {
				n.install("testplugin")
				n.write("10-x.conflist", n.conflist("outer", nil))
				n.uses("outer")
			}
			pod := n.pod()
			n.attach(pod)
			if err := n.Networks.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(filepath.Join(n.cfg.StateDir, "attachments"), 0); err != nil {
				t.Fatal(err)
			}
			n.open()
			if err := n.GC(n.ctx, []string{pod.ID}); err != nil {
				t.Fatal(err)
			}
			if n.records.get(pod.ID) == nil {
				t.Error("the pod is not known")
			}
			n.detach(pod)
			if addresses, _ := n.bridge.InUse(); addresses > 0 {
				t.Errorf("%d addresses are left", addresses)
			}
			if left, _ := filepath.Glob(filepath.Join(run, "results/*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
