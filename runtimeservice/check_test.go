package runtimeservice

import (
	"encoding/json"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
	"github.com/gantry-cri/gantry/runtimeservice/store"
)

var someID = strings.Repeat("0a", idLength/2)

// A good record of each kind is taken, and refused with any one value that leads elsewhere or is too large, by the name
// of the field.
func TestHostileRecords(t *testing.T) {
	cfg := &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/kubepods/pod1"}}
	good := func() store.Pod {
		return store.Pod{CreatedAt: 1, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, Cgroups: []string{"/kubepods", "/kubepods/pod1"}}
	}
	for _, n := range []ocispec.Node{{}, {Systemd: true}} { // the driver was changed
		if err := checkPod(n, someID, good(), cfg); err != nil {
			t.Error(err)
		}
	}
	wrong := func(what string, err error) {
		t.Helper()
		field, _, _ := strings.Cut(what, " ")
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, id := range []string{"", ".", "..", "../../etc", strings.ToUpper(someID), someID + "0"} {
		wrong("id "+id, checkPod(ocispec.Node{}, id, good(), cfg))
		wrong("id "+id, checkContainer(id, store.Container{Cgroup: "/gantry/" + id, StopSignal: 15}))
	}
	for what, spoil := range map[string]func(*store.Pod){
		"createdAt negative":    func(p *store.Pod) { p.CreatedAt = -1 },
		"createdAt overflows":   func(p *store.Pod) { p.CreatedAt = math.MaxInt64 },
		"ips many":              func(p *store.Pod) { p.IPs = slices.Repeat(p.IPs, 1000000) },
		"ips none":              func(p *store.Pod) { p.IPs = make([]netip.Addr, 1) },
		"cgroups many":          func(p *store.Pod) { p.Cgroups = slices.Repeat(p.Cgroups, 1000000) },
		"cgroups of the root":   func(p *store.Pod) { p.Cgroups = []string{"/"} },
		"cgroups of others":     func(p *store.Pod) { p.Cgroups = []string{"/kubepods/pod2"} },
		"cgroups of a neighbor": func(p *store.Pod) { p.Cgroups = []string{"/kubepods/pod"} },
		"cgroups below":         func(p *store.Pod) { p.Cgroups = []string{"/kubepods/pod1/x"} },
		"cgroups outside":       func(p *store.Pod) { p.Cgroups = []string{"/kubepods/../system.slice"} },
		"cgroups empty":         func(p *store.Pod) { p.Cgroups = []string{""} },
	} {
		rec := good()
		spoil(&rec)
		wrong(what, checkPod(ocispec.Node{}, someID, rec, cfg))
	}
	for _, parent := range []string{"/..", "/a/../../b", "/a\x00", "///"} {
		wrong("config "+parent, checkPod(ocispec.Node{}, someID, store.Pod{CreatedAt: 1},
			&runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: parent}}))
	}

	ctr := func() store.Container {
		return store.Container{CreatedAt: 1, Cgroup: "/kubepods/pod1/" + someID, StopSignal: 15, Groups: []uint32{1},
			Runtime: &store.Runtime{Handler: "runc", Path: "/bin/runc", Root: "/run/runc"}}
	}
	if err := checkContainer(someID, ctr()); err != nil {
		t.Error(err)
	}
	systemd := ctr()
	systemd.Cgroup, systemd.Runtime = "/a.slice/gantry-"+someID+".scope", nil
	if err := checkContainer(someID, systemd); err != nil {
		t.Error(err)
	}
	for what, spoil := range map[string]func(*store.Container){
		"cgroup of the root":   func(c *store.Container) { c.Cgroup = "/" },
		"cgroup none":          func(c *store.Container) { c.Cgroup = "" },
		"cgroup of others":     func(c *store.Container) { c.Cgroup = "/system.slice/ssh.service" },
		"cgroup of the pod":    func(c *store.Container) { c.Cgroup = "/kubepods/pod1" },
		"cgroup outside":       func(c *store.Container) { c.Cgroup = "/../" + someID },
		"cgroup relative":      func(c *store.Container) { c.Cgroup = someID },
		"stopSignal none":      func(c *store.Container) { c.StopSignal = 0 },
		"stopSignal negative":  func(c *store.Container) { c.StopSignal = -9 },
		"stopSignal large":     func(c *store.Container) { c.StopSignal = 65 },
		"groups many":          func(c *store.Container) { c.Groups = make([]uint32, 1000000) },
		"createdAt overflows":  func(c *store.Container) { c.CreatedAt = math.MaxInt64 },
		"startedAt negative":   func(c *store.Container) { c.StartedAt = math.MinInt64 },
		"finishedAt overflows": func(c *store.Container) { c.FinishedAt = math.MaxInt64 },
		"runtime relative":     func(c *store.Container) { c.Runtime.Path = "runc" },
		"root relative":        func(c *store.Container) { c.Runtime.Root = "../x" },
		"handler outside":      func(c *store.Container) { c.Runtime.Handler = "../../../etc" },
		"handler above":        func(c *store.Container) { c.Runtime.Handler = ".." },
	} {
		rec := ctr()
		spoil(&rec)
		wrong(what, checkContainer(someID, rec))
	}
}

// FuzzRecords reads records: what is taken has no path out of its object's own, and counting with it goes on rightly.
func FuzzRecords(f *testing.F) {
	f.Add([]byte(`{"createdAt":1,"cgroups":["/gantry"],"ips":["10.0.0.1"]}`), []byte(`{"createdAt":1,"cgroup":"/gantry/`+someID+`","stopSignal":15}`), "/a/b")
	f.Add([]byte(`{"createdAt":9223372036854775807,"cgroups":["/"]}`), []byte(`{"cgroup":"/x/gantry-`+someID+`.scope","stopSignal":1,"runtime":{"handler":"a","path":"/a","root":""}}`), "")
	f.Add([]byte(`{}`), []byte(`{}`), "/a.slice/a-b.slice")
	f.Fuzz(func(t *testing.T, podRaw, ctrRaw []byte, parent string) {
		cfg := &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: parent}}
		var p store.Pod
		if json.Unmarshal(podRaw, &p) == nil && checkPod(ocispec.Node{}, someID, p, cfg) == nil {
			for _, dir := range p.Cgroups {
				if len(dir) < 2 || strings.Contains(dir+"/", "/../") || dir[0] != '/' {
					t.Errorf("cgroups %q", p.Cgroups)
				}
			}
			x := newIndex()
			x.lastTime = p.CreatedAt
			if a, b := x.now(), x.now(); a <= p.CreatedAt || b <= a {
				t.Errorf("after %d come %d and %d", p.CreatedAt, a, b)
			}
		}
		var c store.Container
		if json.Unmarshal(ctrRaw, &c) == nil && checkContainer(someID, c) == nil {
			if !strings.HasPrefix(c.Cgroup, "/") || strings.Contains(c.Cgroup, "/../") || !strings.Contains(c.Cgroup, someID) {
				t.Errorf("cgroup %q", c.Cgroup)
			}
		}
	})
}
