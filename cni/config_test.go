package cni

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
)

func TestStatusFollowsDirectory(t *testing.T) {
	n := newNode(t, func(c *Config) { c.NoDefault = true })
	status := func(want string) {
		t.Helper()
		eventually(t, "status says "+want, func() bool {
			err := n.Status()
			if want == "" {
				return err == nil
			}
			return errors.Is(err, errdefs.ErrUnavailable) && strings.Contains(err.Error(), want)
		})
	}
	status("no CNI configuration in")
	n.write("20-b.conflist", "{") // the directory appears too
	status("20-b.conflist: no JSON")
	if _, err := n.Attach(n.ctx, n.pod()); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("%v, want unavailable", err)
	}
	n.write("README", "not looked at")
	n.write("30-c.conf", `{"cniVersion":"0.4.0","name":"single","type":"loopback"}`)
	status("")
	n.uses("single")
	n.write("10-a.conflist", `{"cniVersion":"1.1.0","name":"first","plugins":[{"type":"loopback"}]}`)
	n.uses("first")
	path := filepath.Join(n.cfg.ConfDir, "10-a.conflist")
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	n.uses("single")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	n.uses("first")
	if err := os.RemoveAll(n.cfg.ConfDir); err != nil {
		t.Fatal(err)
	}
	status("no CNI configuration in")
	n.write("10-a.conflist", `{"cniVersion":"1.1.0","name":"again","plugins":[{"type":"loopback"}]}`)
	n.uses("again")
}

func TestUnknownPlugin(t *testing.T) {
	n := newNode(t)
	n.write("10-a.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"nowhere"}]}`)
	n.uses("x")
	if _, err := n.Attach(n.ctx, n.pod()); !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(err.Error(), "nowhere is not in "+n.cfg.BinDirs[0]) {
		t.Errorf("%v, want an error that says where the plugin is missing", err)
	}
}

func TestPodCIDR(t *testing.T) {
	n := newNode(t)
	for _, bad := range []string{"x", "10.0.0.0/24,10.1.0.0/24", "10.0.0.0/24,fd00::/64,fd01::/64", "10.0.0.0/31", "127.0.0.0/8", "10.0.0.0/24,"} {
		if err := n.SetPodCIDR(bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v, want invalid argument", bad, err)
		}
	}
	n.attach(n.pod())
	if err := errors.Join(n.SetPodCIDR("10.214.7.0/24,fd00:7::/64"), n.SetPodCIDR("")); err != nil {
		t.Fatal(err)
	}
	n.restart()
	result, err := n.Attach(n.ctx, n.named("two"))
	if err != nil {
		t.Fatal(err)
	}
	n.detach(n.named("two"))
	if got := result.IPs; len(got) != 2 || got[0] != netip.MustParseAddr("10.214.7.2") || got[1] != netip.MustParseAddr("fd00:7::2") {
		t.Errorf("got %v", got)
	}
}

func TestBadPods(t *testing.T) {
	n := newNode(t)
	for _, change := range []func(*Pod){
		func(p *Pod) { p.ID = "" },
		func(p *Pod) { p.ID = "../x" },
		func(p *Pod) { p.Name = "a;K8S_POD_NAMESPACE=kube-system" },
		func(p *Pod) { p.UID = "a\nb" },
		func(p *Pod) { p.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "fast"} },
		func(p *Pod) { p.PortMappings = []PortMapping{{Protocol: "dccp", HostPort: 1, ContainerPort: 1}} },
		func(p *Pod) { p.PortMappings = []PortMapping{{Protocol: "tcp", HostPort: 1}} },
		func(p *Pod) {
			p.PortMappings = []PortMapping{{Protocol: "tcp", HostPort: 1, ContainerPort: 1, HostIP: netip.MustParseAddr("::1")}}
		},
	} {
		pod := n.pod()
		change(&pod)
		if _, err := n.Attach(n.ctx, pod); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%+v: %v, want invalid argument", pod, err)
		}
	}
	pod := n.pod()
	pod.NetNS = "/proc/self/exe"
	if _, err := n.Attach(n.ctx, pod); err == nil || !strings.Contains(err.Error(), "is no network namespace") {
		t.Errorf("%v, want an error that says what the path is not", err)
	}
}

func TestParseList(t *testing.T) {
	for _, c := range []struct{ conf, want string }{
		{`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"../../bin/sh"}]}`, `plugin type "../../bin/sh"`},
		{`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"a/b"}]}`, `plugin type "a/b"`},
		{`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":".."}]}`, `plugin type ".."`},
		{`{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"a"}]}`, `network name "../x"`},
		{`{"cniVersion":"9.0.0","name":"x","plugins":[{"type":"a"}]}`, `cniVersion "9.0.0"`},
		{`{"cniVersion":"1.0.0","name":"x","plugins":[]}`, `no plugins`},
		{`{"cniVersion":"1.0.0","name":"x"}`, `no plugins`},
		{`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"a"},{"type":"gantry-bridge","subnets":["10.0.0.0/8"]}]}`, `must be the first`},
		{`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"gantry-bridge"}]}`, `0 sets`},
		{`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"gantry-bridge","subnets":["10.0.0.0"]}]}`, `subnet "10.0.0.0"`},
		{`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"gantry-bridge","subnets":["10.0.0.0/8","10.1.0.0/16"]}]}`, `overlaps`},
		{`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"gantry-bridge","bridge":"a/b","subnets":["10.0.0.0/8"]}]}`, `bridge "a/b"`},
		{`[]`, `parsing`},
		{`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"gantry-bridge","subnets":["10.0.0.0/8","fd00::/64"],"routes":[{"dst":"0.0.0.0/0"}]},{"type":"a"}]}`, ``},
	} {
		_, err := parseList([]byte(c.conf))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.conf, err, c.want)
		}
	}
}

func TestParseQuantity(t *testing.T) {
	for s, want := range map[string]uint64{"1k": 1000, "10M": 1e7, "1.5Gi": 3 << 29, "1e6": 1e6, "100": 100, "1500m": 2, "1P": 1e15, "0": 0} {
		if got, err := parseQuantity(s); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "k", "1 M", "-1", "1KB", "0x10", "Inf", "NaN", "1e400", "1_0", "1e3k", "20E"} {
		if got, err := parseQuantity(s); err == nil {
			t.Errorf("%q is %d, want an error", s, got)
		}
	}
}

// FuzzParseList feeds what an operator or an installer may write; what is accepted must be accepted again from Bytes.
func FuzzParseList(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"gantry-bridge","ranges":[[{"subnet":"10.0.0.0/8","rangeStart":"10.0.0.9"}]]},{"type":"a"}]}`))
	f.Add([]byte(`{"cniVersions":["1.0.0"],"name":"x","plugins":[{"type":"a"}]}`))
	f.Add([]byte(`{"cniVersion":"0.4.0","name":"single","type":"loopback"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if list, err := parseList(data); err == nil {
			if _, err := parseList(list.Bytes); err != nil {
				t.Errorf("accepted, then: %v", err)
			}
		}
		if whole, err := inline("/nowhere", data); err == nil {
			if list, err := parseList(whole); err == nil {
				if again, err := parseList(list.Bytes); err != nil || again.CNIVersion != list.CNIVersion {
					t.Errorf("accepted as of %s, then: %v, %v", list.CNIVersion, again, err)
				}
			}
		}
		if list, err := parseSingle(data); err == nil {
			if _, err := parseList(list.Bytes); err != nil {
				t.Errorf("accepted, then: %v", err)
			}
		}
	})
}

func FuzzParseQuantity(f *testing.F) {
	f.Add("10M")
	f.Add("1.5e3")
	f.Fuzz(func(t *testing.T, s string) { _, _ = parseQuantity(s) })
}

func FuzzParseAttachment(f *testing.F) {
	f.Add("pod", []byte(`{"version":1,"netns":"/x","config":"{\"cniVersion\":\"1.0.0\",\"name\":\"x\",\"plugins\":[{\"type\":\"a\"}]}"}`))
	f.Fuzz(func(t *testing.T, pod string, data []byte) {
		if a, err := parseAttachment(pod, data, map[string]*libcni.NetworkConfigList{}); err == nil && (a.list == nil || strings.HasPrefix(a.NetNS, ".")) {
			t.Errorf("list %v, netns %q", a.list, a.NetNS)
		}
	})
}
