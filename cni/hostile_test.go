package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHostileAttachment has a record say that the pod's namespace is the node's own: no plugin is sent there, and the
// record comes to its end all the same.
func TestHostileAttachment(t *testing.T) {
	n := newNode(t)
	n.install("testplugin")
	n.write("10-x.conflist", n.conflist("outer", nil))
	n.uses("outer")
	pod := n.pod()
	n.attach(pod)
	path := filepath.Join(n.cfg.StateDir, "attachments")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, own := range []string{fmt.Sprintf("/proc/%d/ns/net", os.Getpid()), "/proc/../proc/self/task/../ns/net"} {
		if err := n.Networks.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(good), pod.NetNS, own)), 0o600); err != nil {
			t.Fatal(err)
		}
		n.open()
		if err := n.GC(n.ctx, nil); err != nil {
			t.Error(err)
		}
		calls := n.calls()
		last := calls[len(calls)-1]
		if last.command != "DEL" || !strings.Contains(last.line, `DEL `+pod.ID+` "" `) {
			t.Errorf("with %s: %s", own, last.line)
		}
		if n.records.get(pod.ID) != nil {
			t.Errorf("with %s the record is left", own)
		}
	}
}
