package network

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-cri/gantry/test/harness"
)

// plugin is a CNI plugin, a script, that writes down how it was called, connects nothing, and fails in DEL while there
// is a file del-fails in its folder.
const plugin = `#!/bin/sh
cd "${0%/*}" || exit 1
[ $CNI_COMMAND = VERSION ] || echo "$CNI_COMMAND $CNI_CONTAINERID" >>calls
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"fd00:99::2/64","interface":0},{"address":"10.99.0.2/24","interface":0}]}';;
DEL) [ ! -e del-fails ] || { echo '{"cniVersion":"1.0.0","code":11,"msg":"the switch is away"}'; exit 1; };;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}';;
esac
`

// calls are the verbs that the plugin got for a pod.
func calls(t *testing.T, folder, id string) (verbs []string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(folder, "calls"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if verb, of, _ := strings.Cut(strings.TrimSpace(line), " "); of == id {
			verbs = append(verbs, verb)
		}
	}
	return verbs
}

// Of a plugin of the node's own: its pods have their loopback, their addresses in its order, over a restart too; a DEL
// that fails is told and repeated; pods on the host's network do not know it.
func TestPlugin(t *testing.T) {
	conf, bin := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(bin, "noted"), []byte(plugin), 0o755))
	must(t, os.WriteFile(filepath.Join(conf, "10-noted.conflist"), []byte(`{"cniVersion":"1.0.0","name":"noted","plugins":[{"type":"noted"}]}`), 0o644))
	n := newNode(t, harness.Config{CNIConf: conf, Flags: []string{"--cni-bin-dir", bin}})
	n.pull()

	before, err := harness.List(n.Dir)
	if err != nil {
		t.Fatal(err)
	}
	host := n.pod("host", hostNetwork)
	after, err := harness.List(n.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range after {
		if !slices.Contains(before, line) && (strings.HasPrefix(line, "link ") || strings.HasPrefix(line, "nftables ") ||
			strings.Contains(line, "/root/cni/") || strings.HasSuffix(line, "/ns/net")) {
			t.Errorf("a pod on the host's network brought %s", line)
		}
	}
	host.within()
	if got := calls(t, bin, host.id); len(got) > 0 {
		t.Errorf("a plugin got %v of a pod on the host's network", got)
	}

	p := n.pod("pod").serve()
	check := func(when string) {
		t.Helper()
		if got := fmt.Sprint(p.ips()); got != "[fd00:99::2 10.99.0.2]" {
			t.Errorf("addresses %s: %s, want the result's in its order", when, got)
		}
	}
	check("of a new pod")
	if lo := p.exec("ip", "-o", "addr"); !strings.Contains(lo, " 127.0.0.1/8 ") || !strings.Contains(lo, " ::1/128 ") || strings.Contains(lo, "eth0") {
		t.Errorf("the addresses in the pod are:\n%s", lo)
	}
	if link := p.exec("ip", "-o", "link", "show", "lo"); !strings.Contains(link, ",UP,") {
		t.Errorf("the loopback is %s", link)
	}
	must(t, n.Restart(t.Context()))
	check("after a restart")

	failing := filepath.Join(bin, "del-fails")
	must(t, os.WriteFile(failing, nil, 0o600))
	if err := p.stop(); err == nil || !strings.Contains(err.Error(), "the switch is away") || !strings.Contains(err.Error(), "net/pod") {
		t.Errorf("stopping a pod whose network cannot be taken away: %v, want the plugin's words and the pod", err)
	}
	must(t, os.Remove(failing))
	if err := p.remove(); err != nil {
		t.Errorf("removing it afterwards: %v", err)
	}
	verbs := slices.DeleteFunc(calls(t, bin, p.id), func(v string) bool { return v != "ADD" && v != "DEL" })
	if len(verbs) < 3 || verbs[0] != "ADD" || slices.Contains(verbs[1:], "ADD") {
		t.Errorf("the plugin got %v, want one ADD and DELs until one succeeded", verbs)
	}
}
