package cni

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReboot detaches what a node had before its reboot: namespaces and links are gone, records and libcni's cache are
// on the disk, or one of them is, and the configuration may have been removed with its plugin's agent.
func TestReboot(t *testing.T) {
	if !apart(t) {
		return
	}
	remove := func(patterns ...string) func(*node) {
		return func(n *node) {
			for _, p := range patterns {
				files, _ := filepath.Glob(filepath.Join(n.cfg.StateDir, p))
				if len(files) == 0 {
					n.t.Fatalf("there is no %s", p)
				}
				for _, f := range files {
					if err := os.RemoveAll(f); err != nil {
						n.t.Fatal(err)
					}
				}
			}
		}
	}
	for name, lose := range map[string]func(*node){
		"all is there":          func(*node) {},
		"no configuration":      remove("../net.d/*"),
		"no configuration dir":  remove("../net.d"),
		"no records":            remove("attachments", "../net.d"),
		"no cache":              remove("results", "../net.d"),
		"a cache that is empty": func(n *node) { n.emptyCache() },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, hasty)
			n.install("testplugin")
			n.write("10-x.conflist", `{"cniVersion":"1.0.0","name":"mixed","plugins":[
				{"type":"gantry-bridge","subnets":["10.213.9.0/24"],"capabilities":{"portMappings":true}},
				{"type":"testplugin","log":"`+n.log()+`","capabilities":{"portMappings":true}}]}`)
			n.uses("mixed")
			pods := []Pod{n.pod(PortMapping{Protocol: "tcp", HostPort: 18103, ContainerPort: 80}), n.pod()}
			for _, p := range pods {
				if _, err := n.Attach(n.ctx, p); err != nil {
					t.Fatal(err)
				}
			}
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			for _, p := range pods {
				dropNS(t, p.NetNS)
			}
			lose(n)
			n.open()
			if err := n.GC(n.ctx, nil); err != nil {
				t.Error(err)
			}
			dels := 0
			for _, call := range n.calls() {
				if call.command != "DEL" {
					continue
				}
				dels++
				if !strings.Contains(call.line, `DEL `+call.id+` "" IgnoreUnknown=1;`) || !strings.Contains(call.line, `"prevResult":{`) {
					t.Errorf("DEL has a namespace, or no prevResult: %s", call.line)
				}
			}
			if dels != len(pods) {
				t.Errorf("%d DELs, want one for each pod", dels)
			}
			n.attach(n.named("new")) // which may have an address and a host port of before
		})
	}
}

func (n *node) emptyCache() {
	files, _ := filepath.Glob(filepath.Join(n.cfg.StateDir, "results/*"))
	if len(files) == 0 {
		n.t.Fatal("there is no cache")
	}
	for _, f := range files {
		if err := os.Truncate(f, 0); err != nil {
			n.t.Fatal(err)
		}
	}
}

// TestHangingADD holds up its own pod alone, and that no longer than its caller waits.
func TestHangingADD(t *testing.T) {
	n := newNode(t, hasty)
	n.install("testplugin")
	n.write("10-x.conflist", n.of("1.1.0", "x", ""))
	n.uses("x")
	slow, old := n.named("slow"), n.joined("old")
	n.turn("ADD "+slow.ID, "hang", "DEL "+slow.ID, "error")
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	failed := make(chan error)
	go func() {
		_, err := n.Attach(ctx, slow)
		failed <- err
	}()
	eventually(t, "ADD hangs", func() bool { return n.count("ADD") == 2 })
	n.attach(n.pod())
	n.detach(old)
	n.becomes()
	cancel()
	if err := <-failed; err == nil {
		t.Error("attached by a plugin that hangs")
	}
	n.turn()
	n.isDetached(slow)
}
