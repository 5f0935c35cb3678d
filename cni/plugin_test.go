package cni

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/gantry-cri/gantry/test/killpoint"
)

// pluginDir has the test plugin, once it is built.
var pluginDir string

// builtEnv is where the test plugin is that another process has built.
const builtEnv = "GANTRY_TEST_PLUGIN"

// buildPlugin compiles testdata/plugin once per run.
var buildPlugin = sync.OnceValues(func() (string, error) {
	path := filepath.Join(pluginDir, "plugin")
	if built := os.Getenv(builtEnv); built != "" { // by the process that this one is apart of; its own name tells whose plugin runs
		return path, os.Link(built, path)
	}
	out, err := exec.Command("go", "build", "-o", path, "./testdata/plugin").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	killpoint.Main()
	if text := os.Getenv(victimEnv); text != "" {
		if err := victim(text); err != nil {
			fmt.Println("error", err)
		}
		return
	}
	err := isolate()
	if err != nil {
		panic(err)
	}
	if pluginDir, err = os.MkdirTemp("", "cni-plugin"); err != nil {
		panic(err)
	}
	_ = flag.Set("test.parallel", "5") // unless the command line says other: tests that are apart wait for the kernel
	code := m.Run()
	_ = os.RemoveAll(pluginDir)
	os.Exit(code)
}

// install puts the test plugin into the node's plugin directory.
func (n *node) install(name string) {
	n.t.Helper()
	built, err := buildPlugin()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := os.MkdirAll(n.cfg.BinDirs[0], 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Symlink(built, filepath.Join(n.cfg.BinDirs[0], name)); err != nil {
		n.t.Fatal(err)
	}
}

// call is one call of the test plugin.
type call struct{ command, id, line string }

func (n *node) log() string { return filepath.Join(n.cfg.StateDir, "calls") }

func (n *node) calls() (calls []call) {
	data, _ := os.ReadFile(n.log())
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		calls = append(calls, call{f[0], f[1], line})
	}
	return calls
}

func (n *node) commands() (c []string) {
	for _, call := range n.calls() {
		c = append(c, call.command)
	}
	return c
}

const external = `{"cniVersion":"1.0.0","ips":[{"address":"10.9.8.7/24","interface":0}],"interfaces":[{"name":"eth0","sandbox":"/x"}]}`

// conflist is a list of test plugins, one per behaviour map.
func (n *node) conflist(name string, behaviours ...map[string]string) string {
	var plugins []any
	for _, do := range behaviours {
		plugins = append(plugins, map[string]any{"type": "testplugin", "log": n.log(), "do": do, "switch": n.switchFile(), "result": json.RawMessage(external),
			"capabilities": map[string]bool{"portMappings": true, "dns": true, "bandwidth": true}})
	}
	data, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": name, "plugins": plugins})
	if err != nil {
		n.t.Fatal(err)
	}
	return string(data)
}

// uses waits until the configuration of a name is in force.
func (n *node) uses(name string) {
	n.t.Helper()
	eventually(n.t, "network "+name+" is in force", func() bool {
		list, err := n.list()
		return err == nil && list.Name == name
	})
}

func TestExternalChain(t *testing.T) {
	n := newNode(t)
	n.install("testplugin")
	n.write("10-x.conflist", n.conflist("outer", nil, nil))
	n.uses("outer")
	pod := n.pod(PortMapping{Protocol: "UDP", HostPort: 53, ContainerPort: 5353, HostIP: netip.MustParseAddr("192.0.2.9")}, PortMapping{Protocol: "TCP", ContainerPort: 1})
	pod.DNSServers, pod.DNSSearches, pod.DNSOptions = []string{"192.0.2.53"}, []string{"a.b"}, []string{"ndots:5"}
	pod.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "10M"}
	t.Setenv("HTTP_PROXY", "http://user:secret@example.invalid")
	if ip := n.attach(pod); ip != netip.MustParseAddr("10.9.8.7") {
		t.Errorf("got %s", ip)
	}
	inNS(t, pod.NetNS, func() error {
		lo, err := netlink.LinkByName("lo")
		if err == nil && lo.Attrs().RawFlags&1 == 0 {
			err = errors.New("loopback is down")
		}
		return err
	})
	calls := n.calls()
	if len(calls) != 2 || calls[0].command != "ADD" || calls[1].command != "ADD" {
		t.Fatalf("calls %v, want two ADDs", n.commands())
	}
	for _, want := range []string{`"` + pod.NetNS + `"`, "IgnoreUnknown=1;K8S_POD_NAMESPACE=test;K8S_POD_NAME=pod1;K8S_POD_INFRA_CONTAINER_ID=" + pod.ID + ";K8S_POD_UID=uid-pod1",
		`"portMappings":[{"containerPort":5353,"hostIP":"192.0.2.9","hostPort":53,"protocol":"udp"}]`,
		`"dns":{"options":["ndots:5"],"searches":["a.b"],"servers":["192.0.2.53"]}`, `"ingressRate":10000000`, `"name":"outer"`} {
		if !strings.Contains(calls[0].line, want) {
			t.Errorf("ADD has no %s: %s", want, calls[0].line)
		}
	}
	if strings.Contains(calls[0].line, "secret") {
		t.Error("the plugin sees the daemon's environment")
	}
	if !strings.Contains(calls[1].line, `"prevResult"`) {
		t.Errorf("the second plugin has no prevResult: %s", calls[1].line)
	}

	// The configuration changes and the daemon restarts; the pod's DEL is that of its ADD, its namespace gone.
	n.write("05-y.conflist", n.conflist("other", nil))
	n.uses("other")
	n.restart()
	dropNS(t, pod.NetNS)
	n.detach(pod)
	calls = n.calls()[2:]
	if len(calls) != 2 || calls[0].command != "DEL" || calls[1].command != "DEL" {
		t.Fatalf("calls %v, want two DELs", n.commands())
	}
	for _, want := range []string{`"name":"outer"`, `"prevResult"`, `"hostPort":53`, ` "" `, "K8S_POD_NAME=pod1"} {
		if !strings.Contains(calls[0].line, want) {
			t.Errorf("DEL has no %s: %s", want, calls[0].line)
		}
	}
}

func TestBadPlugins(t *testing.T) {
	for _, c := range []struct{ do, want string }{
		{"error", "no luck with ADD; as told"},
		{"exit", "words on stderr"},
		{"hang", "deadline"},
		{"hangchild", "deadline"},
		{"garbage", "CNI plugin testplugin ADD ended well, but printed no result: invalid character '}' looking for beginning of value, stdout \"}{ not json\""},
		{"endless", "more than 1048576 bytes"},
		{"noips", "no address of eth0"},
	} {
		t.Run(c.do, func(t *testing.T) {
			n := newNode(t)
			n.install("testplugin")
			n.write("10-x.conflist", n.conflist("outer", nil, map[string]string{"ADD": c.do}))
			n.uses("outer")
			ctx := n.ctx
			if strings.HasPrefix(c.do, "hang") {
				ctx = overdue(t, ctx, "the second ADD begins", func() bool { return len(n.commands()) == 2 })
			}
			_, err := n.Attach(ctx, n.pod())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want an error with %q", err, c.want)
			}
			if strings.HasPrefix(c.do, "hang") && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v is not deadline exceeded", err)
			}
			if got := fmt.Sprint(n.commands()); got != "[ADD ADD DEL DEL]" {
				t.Errorf("calls %s", got)
			}
			noProcess(t)
		})
	}
}

// overdue is a context whose deadline passes when something is so: of one by the clock nobody knows how far a slow
// machine comes until then.
func overdue(t *testing.T, parent context.Context, what string, so func() bool) context.Context {
	passed := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		defer close(passed)
		eventually(t, what, so)
	})
	t.Cleanup(waiting.Wait)
	return overdueContext{parent, passed}
}

type overdueContext struct {
	context.Context
	passed chan struct{}
}

func (c overdueContext) Done() <-chan struct{} { return c.passed }

func (c overdueContext) Err() error {
	select {
	case <-c.passed:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// noProcess requires that no plugin runs.
func noProcess(t *testing.T) {
	t.Helper()
	built, _ := buildPlugin()
	eventually(t, "no plugin runs", func() bool {
		procs, _ := filepath.Glob("/proc/[0-9]*/exe")
		for _, p := range procs {
			if exe, err := os.Readlink(p); err == nil && exe == built {
				return false
			}
		}
		return true
	})
}

// TestLeakedChild attaches although a child of the plugin holds its output open.
func TestLeakedChild(t *testing.T) {
	if !apart(t) {
		return
	}
	n := newNode(t)
	n.install("testplugin")
	n.write("10-x.conflist", n.conflist("outer", map[string]string{"ADD": "leak"}))
	n.uses("outer")
	n.attach(n.pod())
	built, _ := buildPlugin()
	procs, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, p := range procs { // the plugin meant it to stay, the test does not
		if exe, err := os.Readlink(p); err == nil && exe == built {
			var pid int
			fmt.Sscanf(p, "/proc/%d/exe", &pid)
			if proc, err := os.FindProcess(pid); err == nil {
				_ = proc.Kill()
			}
		}
	}
	noProcess(t)
}

// TestFailingDel keeps a pod attached whose DEL fails, until it works.
func TestFailingDel(t *testing.T) {
	n := newNode(t)
	n.install("testplugin")
	n.write("10-x.conflist", n.conflist("outer", map[string]string{"DEL": "error"}))
	n.uses("outer")
	pod := n.pod()
	if _, err := n.Attach(n.ctx, pod); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.Detach(n.ctx, pod); err == nil || !strings.Contains(err.Error(), "no luck with DEL") {
			t.Errorf("%v, want the plugin's error", err)
		}
	}
	if err := n.Teardown(n.ctx); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("teardown with a pod: %v, want failed precondition", err)
	}
	n.restart()
	if err := n.GC(n.ctx, nil); err == nil {
		t.Error("GC hides that DEL fails")
	}
	if _, err := n.Attach(n.ctx, pod); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("%v, want already exists", err)
	}
	// Repaired: a plugin of the same name that works.
	path := filepath.Join(n.cfg.BinDirs[0], "testplugin")
	if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("#!/bin/sh\nexit 0\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := n.GC(n.ctx, nil); err != nil {
		t.Error(err)
	}
}

// TestBuiltInThenExternal undoes the built-in plugin when one behind it fails, and the pod's namespace is as new.
func TestBuiltInThenExternal(t *testing.T) {
	n := newNode(t)
	n.install("testplugin")
	list := func(do string) string {
		return `{"cniVersion":"1.0.0","name":"mixed","plugins":[
			{"type":"gantry-bridge","subnets":["10.213.9.0/24"],"ipMasq":true,"capabilities":{"portMappings":true}},
			{"type":"loopback"},
			{"type":"testplugin","log":"` + n.log() + `","do":{"ADD":"` + do + `"}}]}`
	}
	n.write("10-x.conflist", list("error"))
	n.uses("mixed")
	pod := n.pod(PortMapping{Protocol: "tcp", HostPort: 18099, ContainerPort: 80})
	if _, err := n.Attach(n.ctx, pod); err == nil {
		t.Fatal("attached")
	}
	n.write("10-x.conflist", list("ok"))
	eventually(t, "the new list is in force", func() bool {
		l, err := n.list()
		return err == nil && strings.Contains(string(l.Bytes), `"ok"`)
	})
	ip := n.attach(pod)
	listen(t, pod.NetNS, "tcp", at(ip, 80).String())
	reaches(t, "", "tcp", at(netip.MustParseAddr("127.0.0.1"), 18099), netip.Addr{})
}

// TestAttachTooLate undoes what the caller no longer waits for.
func TestAttachTooLate(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithCancel(n.ctx)
	cancel()
	pod := n.pod(PortMapping{Protocol: "tcp", HostPort: 18100, ContainerPort: 80})
	if _, err := n.Attach(ctx, pod); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want canceled", err)
	}
	n.attach(pod) // and the namespace is as new
}
