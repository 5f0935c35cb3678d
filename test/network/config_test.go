package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

// networkReady is the condition of that name.
func (n *node) networkReady() *runtimeapi.RuntimeCondition {
	n.t.Helper()
	resp, err := n.Runtime.Status(n.context(), &runtimeapi.StatusRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, c := range resp.GetStatus().GetConditions() {
		if c.GetType() == runtimeapi.NetworkReady {
			return c
		}
	}
	n.t.Fatal("no condition NetworkReady")
	return nil
}

// becomesReady waits until the network is ready.
func (n *node) becomesReady() {
	n.t.Helper()
	n.eventually("the network is ready", func() bool { return n.networkReady().GetStatus() })
}

// becomesUnready waits until the network is not ready, for a reason that has all the words.
func (n *node) becomesUnready(words ...string) {
	n.t.Helper()
	n.eventually("the network is not ready because of "+strings.Join(words, ", "), func() bool {
		c := n.networkReady()
		return !c.GetStatus() && c.GetReason() == "NetworkPluginNotReady" &&
			!slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(c.GetMessage(), w) })
	})
}

// within requires that all addresses of a pod, one for each prefix, are in these.
func (p *pod) within(prefixes ...string) {
	p.t.Helper()
	ips := p.ips()
	if len(ips) != len(prefixes) {
		p.t.Errorf("pod %s has addresses %v, want one of each of %v", p.config.GetMetadata().GetName(), ips, prefixes)
		return
	}
	for i, ip := range ips {
		if !netip.MustParsePrefix(prefixes[i]).Contains(ip) {
			p.t.Errorf("address %d of pod %s is %s, want one of %s", i, p.config.GetMetadata().GetName(), ip, prefixes[i])
		}
	}
}

const ownList = `{"cniVersion": "1.0.0", "name": "own", "plugins": [{"type": "gantry-bridge", "bridge": "gtest211", "isGateway": true,
	"ipMasq": true, "hairpinMode": true, "subnets": ["10.211.0.0/24"], "capabilities": {"portMappings": true}}]}`

// NetworkReady follows the configuration directory, with a default network and without one. Pods stay as they were made.
func TestNetworkReady(t *testing.T) {
	for _, c := range []struct{ name, toml string }{{"default", ""}, {"none", "[network]\ndefault = \"none\"\n"}} {
		t.Run(c.name, func(t *testing.T) {
			harness.Require(t)
			conf := t.TempDir()
			file := filepath.Join(conf, "10-own.conflist")
			write := func(text string) {
				t.Helper()
				must(t, os.WriteFile(file, []byte(text), 0o644))
			}
			write(ownList)
			n := newNode(t, harness.Config{CNIConf: conf, Subnets: dual, TOML: c.toml})
			n.pull()
			old := n.pod("old", ports(port(tcp, 18080, 80, ""))).serve()
			old.within("10.211.0.0/24")

			write(strings.Replace(ownList, "10.211.0.0/24", "10.211.0.0/33", 1))
			n.becomesUnready(file, "10.211.0.0/33")
			n.refuses(file)
			write(ownList)
			n.becomesReady()
			n.pod("mended").within("10.211.0.0/24")

			must(t, os.Remove(file))
			if c.toml == "" {
				n.eventually("the default network serves", func() bool {
					p, err := n.try("probe")
					must(t, err)
					ips := p.ips()
					must(t, p.remove())
					return len(ips) == 2
				})
				latest := n.pod("new").serve()
				latest.within("10.212.0.0/24", "fd00:212::/64")
				expect(t, latest.ask, patience, []question{{"a pod of the other network", "tcp", netip.AddrPortFrom(old.ips()[0], 80), latest.ips()[0].String()}})
			} else {
				n.becomesUnready(conf, "turned off")
				n.refuses(conf, "turned off")
				if got := n.pod("host", hostNetwork).ips(); len(got) > 0 {
					t.Errorf("a pod on the host's network has addresses %v", got)
				}
			}
			old.within("10.211.0.0/24")
			expect(t, here, patience, []question{{"a pod of the file that is gone", "tcp", netip.MustParseAddrPort("127.0.0.1:18080"), "10.211.0.1"}})
			if err := old.remove(); err != nil {
				t.Errorf("removing a pod of the file that is gone: %v", err)
			}
		})
	}
}

// refuses requires that a pod with a network is refused at once, for a reason with these words, and leaves nothing.
func (n *node) refuses(words ...string) {
	n.t.Helper()
	p, err := n.try("refused")
	if err == nil {
		n.t.Errorf("a pod is made while there is no network: %v", p.remove())
		return
	}
	if status.Code(err) != codes.Unavailable {
		n.t.Errorf("a pod while there is no network: %v, want code Unavailable", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			n.t.Errorf("a pod while there is no network: %v, want a message with %q", err, w)
		}
	}
	resp, err := n.Runtime.ListPodSandbox(n.context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || slices.ContainsFunc(resp.GetItems(), func(p *runtimeapi.PodSandbox) bool { return p.GetMetadata().GetName() == "refused" }) {
		n.t.Errorf("after the refusal: %v, %v", resp, err)
	}
}

// The range that the cluster gives this node serves the default network from the next pod on and is remembered.
func TestPodCIDR(t *testing.T) {
	n := newNode(t, harness.Config{})
	give := func(cidr string) error {
		_, err := n.Runtime.UpdateRuntimeConfig(n.context(), &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}}})
		return err
	}
	old := n.pod("old")
	before := old.ips()
	for _, bad := range []string{"10.212.0.0/33", "10.212.0.0", "10.212.0.0/24,10.212.1.0/24", "10.212.0.0/24,fd00::/64,fd01::/64", "10.212.0.0/32", "224.0.0.0/24", "everywhere"} {
		if err := give(bad); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), bad) {
			t.Errorf("pod CIDR %q: %v, want InvalidArgument with that value", bad, err)
		}
	}
	if p := n.pod("after-bad"); len(p.ips()) != 1 || !netip.PrefixFrom(before[0], 24).Masked().Contains(p.ips()[0]) {
		t.Errorf("after refused CIDRs a pod has %v, one before them %v", p.ips(), before)
	}
	must(t, give(dual))
	if err := give(""); err != nil { // a kubelet that knows none yet
		t.Fatal(err)
	}
	first := n.pod("first")
	first.within("10.212.0.0/24", "fd00:212::/64")
	ofFirst := first.ips()
	must(t, n.Restart(t.Context()))
	n.pod("second").within("10.212.0.0/24", "fd00:212::/64")
	for p, want := range map[*pod][]netip.Addr{old: before, first: ofFirst} {
		if got := p.ips(); !slices.Equal(got, want) {
			t.Errorf("pod %s had the addresses %v, after a restart %v", p.config.GetMetadata().GetName(), want, got)
		}
	}
}

// The example of docs/network.md has every key that there is, and works.
func TestDocumentedList(t *testing.T) {
	harness.Require(t)
	repo, err := harness.Repository()
	must(t, err)
	page, err := os.ReadFile(filepath.Join(repo, "docs/network.md"))
	must(t, err)
	_, list, _ := strings.Cut(string(page), "```json\n")
	list, _, _ = strings.Cut(list, "```")
	conf := t.TempDir()
	must(t, os.WriteFile(filepath.Join(conf, "10-pods.conflist"), []byte(strings.Replace(list, "gantry0", "gtest212", 1)), 0o644))
	n := newNode(t, harness.Config{CNIConf: conf})
	n.pull()
	p := n.pod("example", ports(port(tcp, 18080, 80, ""))).serve()
	p.within("10.90.0.0/24", "fd00:90::/64")
	for _, want := range []string{"default via 10.90.0.1 ", "192.168.0.0/16 via 10.90.0.2 "} {
		if got := p.exec("ip", "route"); !strings.Contains(got, want) {
			t.Errorf("routes of the pod:\n%s, want %s", got, want)
		}
	}
	if got := p.exec("ip", "link", "show", "eth0"); !strings.Contains(got, "mtu 1450 ") {
		t.Errorf("the pod's link: %s", got)
	}
}
