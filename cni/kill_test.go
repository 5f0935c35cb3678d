package cni

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/test/killpoint"
)

// victimEnv makes the test binary a daemon that does what its job says. It is to be killed.
const victimEnv = "GANTRY_TEST_VICTIM"

// job is what a victim does, one step after another: open, gc, attach, detach, teardown.
type job struct {
	Config Config
	Pod    Pod
	Live   []string // for gc
	Steps  []string
}

func victim(text string) error {
	klog.SetLogger(klog.Logger{})
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	fmt.Println("up")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	ctx := context.Background()
	var n *Networks
	for _, step := range j.Steps {
		var err error
		var result Result
		switch step {
		case "open":
			n, err = Open(ctx, j.Config)
		case "gc":
			err = n.GC(ctx, j.Live)
		case "attach":
			result, err = n.Attach(ctx, j.Pod)
		case "detach":
			err = n.Detach(ctx, j.Pod)
		case "teardown":
			err = n.Teardown(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
		fmt.Println(step, result.IPs)
	}
	return nil
}

// death is what a victim had done when it ended.
type death struct {
	killpoint.Report
	done []string // steps
	ips  string   // that attach gave
}

func (d death) did(step string) bool { return slices.Contains(d.done, step) }

// kill runs a victim until its n-th change.
func (n *node) kill(j job, point killpoint.Point) death {
	n.t.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victimEnv+"="+string(text), "GORACE=atexit_sleep_ms=0")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	out := bufio.NewReader(stdout)
	if word, err := out.ReadString('\n'); word != "up\n" {
		n.t.Fatal(word, err)
	}
	trace, err := killpoint.Attach(cmd.Process.Pid, point)
	if err != nil {
		n.t.Fatal(err)
	}
	fmt.Fprintln(stdin, "go")
	words, err := io.ReadAll(out)
	if err != nil {
		n.t.Fatal(err)
	}
	_ = cmd.Wait() // the trace tells
	var d death
	if d.Report, err = trace.End(); err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.Lines(string(words)) {
		step, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if step == "error" {
			n.t.Fatalf("the victim: %s", rest)
		}
		d.done = append(d.done, step)
		if step == "attach" {
			d.ips = rest
		}
	}
	n.t.Cleanup(func() {
		if n.t.Failed() {
			n.t.Logf("killed %v after steps %v at %s", d.Killed, d.done, d.Last())
		}
	})
	return d
}

// killEvery is how many changes are passed over for one that is tried, so that the tests take seconds.
// GANTRY_KILL_ALL=1 tries them all.
const killEvery = 5

// eachChange calls f with every change, or a sample, until f survives it. To be killed after a change is the same as to
// be killed before the next one, but for a program that was started, which runs on: those are always tried.
func eachChange(t *testing.T, f func(t *testing.T, point killpoint.Point) death) {
	t.Helper()
	every := killEvery
	if os.Getenv("GANTRY_KILL_ALL") != "" {
		every = 1
	}
	// The shorter of two runs counts: what is done in the background may come more often in one of them.
	var runs [2]death
	for i := range runs {
		if !t.Run("survives", func(t *testing.T) { runs[i] = f(t, killpoint.Point{}) }) {
			return
		}
		if runs[i].Killed {
			t.Fatalf("killed without being told to: %+v", runs[i])
		}
	}
	slices.SortFunc(runs[:], func(a, b death) int { return len(a.Changes) - len(b.Changes) })
	whole := runs[0]
	if more := runs[1].Changes; len(more) > 2*len(whole.Changes) {
		t.Logf("a run with %d changes, which should not be: it ended with %q", len(more), more[max(0, len(more)-20):])
	}
	t.Logf("%d changes", len(whole.Changes))
	try := func(point killpoint.Point) { // the last few may not come: a sysctl that is set need not be set again
		t.Run(fmt.Sprintf("%d of %d after %v", point.N, len(whole.Changes), point.After), func(t *testing.T) {
			if d := f(t, point); !d.Killed && point.N < len(whole.Changes)/2 {
				t.Errorf("not killed: %+v", d)
			}
		})
	}
	first := rand.IntN(every)
	for i := range whole.Changes {
		if i%every == first {
			try(killpoint.Point{N: i + 1})
		}
		if (killpoint.Report{Changes: whole.Changes[:i+1]}).GoesOn() {
			try(killpoint.Point{N: i + 1, After: true})
		}
		if t.Failed() {
			return
		}
	}
}

var killPorts = []PortMapping{{Protocol: "tcp", HostPort: 18080, ContainerPort: 80}, {Protocol: "udp", HostPort: 18080, ContainerPort: 53}}

var killLimits = map[string]string{"kubernetes.io/ingress-bandwidth": "100M", "kubernetes.io/egress-bandwidth": "100M"}

// elements counts the elements of the host ports' maps in the kernel.
func (n *node) elements() (count int) {
	n.t.Helper()
	c := &nftables.Conn{}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, table := range tables {
		if table.Name != n.cfg.Table {
			continue
		}
		sets, err := c.GetSets(table)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, set := range sets {
			if strings.Contains(set.Name, "ports") {
				elements, err := c.GetSetElements(set)
				if err != nil {
					n.t.Fatal(err)
				}
				count += len(elements)
			}
		}
	}
	return count
}

// afterwards is what must be so once the dead daemon's successor has cleaned up: another pod gets all that the dead
// one's had. The audit of the node then finds nothing.
func (n *node) afterwards(pod Pod) {
	n.t.Helper()
	dropNS(n.t, pod.NetNS)
	if got := n.elements(); got != 0 {
		n.t.Errorf("%d elements of host ports are left", got)
	}
	next := n.pod(killPorts...)
	if _, err := n.Attach(n.ctx, next); err != nil {
		n.t.Fatal(err)
	}
	n.detach(next)
	dropNS(n.t, next.NetNS)
}

// TestKilledInLife kills a daemon at each change of a pod's life, and starts another, which does what the runtime
// service does at its start.
func TestKilledInLife(t *testing.T) {
	t.Parallel()
	killpoint.Require(t)
	for name, setUp := range map[string]func(*node){"built in": func(*node) {}, "plugin": withLeases, "reference plugins": withHostLocal} {
		t.Run(name, func(t *testing.T) {
			if !apart(t) {
				return
			}
			eachChange(t, func(t *testing.T, point killpoint.Point) death { return killedInLife(t, setUp, point) })
		})
	}
}

func killedInLife(t *testing.T, setUp func(*node), point killpoint.Point) death {
	n := closedNode(t, dual)
	setUp(n)
	pod := n.pod(killPorts...)
	pod.Annotations = killLimits
	d := n.kill(job{Config: n.cfg, Pod: pod, Steps: []string{"open", "gc", "attach", "detach", "gc", "teardown"}}, point)
	n.open()
	t.Cleanup(n.audit)
	var live []string
	if d.did("attach") && !d.did("detach") {
		live = []string{pod.ID} // ready, or being stopped
	}
	if !point.After { // of a pod that was being made, the record may be lost too
		n.detach(pod)
	}
	if err := n.GC(n.ctx, live); err != nil {
		t.Fatal(err)
	}
	n.detach(pod)
	n.afterwards(pod)
	return d
}

// TestKilledAtStart kills a daemon at each change of its start, when there is a pod that lives and one that does not.
func TestKilledAtStart(t *testing.T) {
	t.Parallel()
	killpoint.Require(t)
	for name, setUp := range map[string]func(*node){"built in": func(*node) {}, "reference plugins": withHostLocal} {
		t.Run(name, func(t *testing.T) {
			if !apart(t) {
				return
			}
			eachChange(t, func(t *testing.T, point killpoint.Point) death { return killedAtStart(t, setUp, point) })
		})
	}
}

func killedAtStart(t *testing.T, setUp func(*node), point killpoint.Point) death {
	n := closedNode(t, dual)
	setUp(n)
	n.open()
	t.Cleanup(n.audit)
	lives, dead := n.pod(killPorts...), n.pod(PortMapping{Protocol: "tcp", HostPort: 18081, ContainerPort: 80})
	lives.Annotations, dead.Annotations = killLimits, killLimits
	had, err := n.Attach(n.ctx, lives)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Attach(n.ctx, dead); err != nil {
		t.Fatal(err)
	}
	elements, limited := n.elements()/3*2, len(n.ifbs())/2 // both families have 3 ports
	if err := n.Networks.Close(); err != nil {
		t.Fatal(err)
	}
	d := n.kill(job{Config: n.cfg, Live: []string{lives.ID}, Steps: []string{"open", "gc"}}, point)
	n.open()
	if err := n.GC(n.ctx, []string{lives.ID}); err != nil {
		t.Fatal(err)
	}
	if got := n.elements(); got != elements {
		t.Errorf("%d elements of host ports, want the %d of the pod that lives", got, elements)
	}
	eventually(t, "of the limits' links one is left", func() bool { return len(n.ifbs()) == limited })
	next := n.pod(PortMapping{Protocol: "tcp", HostPort: 18081, ContainerPort: 80}) // the dead one's
	got, err := n.Attach(n.ctx, next)
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range got.IPs {
		if slices.Contains(had.IPs, ip) {
			t.Errorf("%s is given out twice", ip)
		}
	}
	// Not TCP: a connection that is cut off in its close keeps its namespace alive, and so the link, for a minute.
	reaches(t, next.NetNS, "udp", listen(t, lives.NetNS, "udp", at(had.IPs[0], 80).String()), got.IPs[0])
	n.detach(next)
	n.detach(lives)
	dropNS(t, dead.NetNS)
	dropNS(t, next.NetNS)
	n.afterwards(lives)
	return d
}

// withLeases is the test plugin, which is still about to hand out a lease when the daemon dies that has started it.
func withLeases(n *node) {
	n.t.Helper()
	n.install("testplugin")
	leases := n.t.TempDir()
	n.write("10-x.conflist", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"chain","plugins":[{"type":"testplugin","leases":%q,"result":%s}]}`, leases, external))
	n.t.Cleanup(func() { n.noLease(leases) })
}

// withHostLocal is a chain of Debian's plugins, where they are installed.
func withHostLocal(n *node) {
	n.t.Helper()
	n.cfg.BinDirs = append(n.cfg.BinDirs, "/usr/lib/cni", "/opt/cni/bin")
	n.cfg.Subnets = nil
	leases := n.t.TempDir()
	for _, name := range []string{"bridge", "host-local"} {
		if !slices.ContainsFunc(n.cfg.BinDirs, func(dir string) bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil }) {
			missing(n.t, "the reference plugin "+name)
		}
	}
	n.write("10-x.conflist", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"chain","plugins":[
		{"type":"bridge","bridge":"gttref0","isGateway":true,"ipam":{"type":"host-local","dataDir":%q,
			"ranges":[[{"subnet":"10.214.0.0/24"}],[{"subnet":"fd00:214::/64"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`, leases))
	n.t.Cleanup(func() { n.noLease(leases) })
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing: run hack/install-deps.sh test", what)
	}
	t.Skipf("%s is missing: run hack/install-deps.sh test", what)
}

// noLease requires a directory without leases, once no plugin runs that could make one. Plugins keep a lock and the
// last address of each range there.
func (n *node) noLease(dir string) {
	n.t.Helper()
	n.nothingRuns()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != dir && d.Name() != "chain" && d.Name() != "lock" && !strings.HasPrefix(d.Name(), "last_reserved_ip.") {
			n.t.Errorf("left behind: %s", path)
		}
		return err
	})
	if err != nil {
		n.t.Error(err)
	}
}
