package network

import (
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/killpoint"
)

// killEvery is how many of an operation's changes are passed over for one that the daemon is killed at, so that the
// test takes seconds; GANTRY_KILL_ALL=1 takes them all, before and after.
const killEvery = 6

var killPorts = ports(port(runtimeapi.Protocol_TCP, 18080, 80, ""), port(runtimeapi.Protocol_UDP, 18080, 53, ""))

// The daemon is killed at changes that it makes while a pod is made, stopped or removed, and started again: the pod is
// there wholly or not at all, and can be stopped and removed; nothing is left; and it can be made again.
func TestKilledAtChanges(t *testing.T) {
	harness.Require(t)
	killpoint.Require(t)
	n := newNode(t, harness.Config{Subnets: dual})
	must(t, n.pod("first", killPorts).remove()) // makes what stays: bridge, table, the journals
	for _, op := range []string{"run", "stop", "remove"} {
		t.Run(op, func(t *testing.T) {
			n := n.in(t)
			eachChange(t, killEvery, func(at killpoint.Point) killpoint.Report { return n.killedAt(op, at) })
		})
	}
}

// eachChange calls f with one change of so many, from a random one on, until it is survived.
func eachChange(t *testing.T, every int, f func(killpoint.Point) killpoint.Report) {
	t.Helper()
	whens := []bool{rand.IntN(2) == 0}
	if os.Getenv("GANTRY_KILL_ALL") != "" {
		every, whens = 1, []bool{false, true}
	}
	first := 1 + rand.IntN(every)
	for at := first; ; at += every {
		killed := false
		for _, after := range whens {
			r := f(killpoint.Point{N: at, After: after})
			killed = killed || r.Killed
			if t.Failed() {
				t.Fatalf("killed %v at %s (after it: %v)", r.Killed, r.Last(), after)
			}
		}
		if !killed {
			t.Logf("survived when it was to be killed at change %d, the first was %d", at, first)
			return
		}
	}
}

// The daemon is killed while it makes a pod, and killed again while it starts and undoes that. The pod that was ready
// before keeps its addresses, of the other nothing is left.
func TestKilledWhileStarting(t *testing.T) {
	harness.Require(t)
	killpoint.Require(t)
	n := newNode(t, harness.Config{Subnets: dual})
	must(t, n.pod("first", killPorts).remove())
	eachChange(t, 2*killEvery, func(at killpoint.Point) killpoint.Report {
		keep, err := n.try("keep", ports(port(runtimeapi.Protocol_TCP, 18081, 80, "")))
		must(t, err)
		ips := keep.ips()

		trace, err := killpoint.Attach(n.PID(), killpoint.Point{N: 20 + rand.IntN(30)}) // its network is among these
		must(t, err)
		if _, err := n.try("killed", killPorts); err == nil {
			t.Error("the pod was made")
		}
		first, err := trace.End()
		must(t, err)
		must(t, n.Kill())

		n.Started = func(pid int) {
			if trace, err = killpoint.Attach(pid, at); err != nil {
				t.Error(err)
			}
		}
		err = n.StartDaemon(context.Background())
		n.Started = nil
		report, terr := trace.End()
		must(t, terr)
		if report.Killed {
			must(t, n.Kill())
			err = n.StartDaemon(context.Background())
		}
		must(t, err)

		list, err := n.Runtime.ListPodSandbox(n.context(), &runtimeapi.ListPodSandboxRequest{})
		must(t, err)
		if items := list.GetItems(); len(items) != 1 || items[0].GetId() != keep.id || items[0].GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
			t.Errorf("killed at %s, then while starting: pods %v", first.Last(), items)
		}
		if got := keep.ips(); !slices.Equal(got, ips) {
			t.Errorf("killed at %s, then while starting: the pod that was ready has %v, and had %v", first.Last(), got, ips)
		}
		must(t, keep.remove())
		must(t, n.Audit())
		return report
	})
}

// killedAt kills the daemon in an operation and requires that all is well afterwards.
func (n *node) killedAt(op string, point killpoint.Point) killpoint.Report {
	n.t.Helper()
	p := &pod{node: n, config: podConfig(n, "killed", killPorts)}
	run := func() (string, error) {
		resp, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: p.config})
		return resp.GetPodSandboxId(), err
	}
	var err error
	if op != "run" {
		p.id, err = run()
		must(n.t, err)
	}
	if op == "remove" && rand.IntN(2) == 0 { // else it is stopped on the way
		must(n.t, p.stop())
	}

	trace, err := killpoint.Attach(n.PID(), point)
	must(n.t, err)
	switch op {
	case "run":
		p.id, err = run()
	case "stop":
		err = p.stop()
	case "remove":
		_, err = n.Runtime.RemovePodSandbox(n.context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
	}
	report, terr := trace.End()
	must(n.t, terr)
	if !report.Killed {
		must(n.t, err) // the daemon has no more changes than that
	} else {
		if err != nil && status.Code(err) != codes.Unavailable {
			n.t.Errorf("the client of the dead daemon got %v", err)
		}
		must(n.t, n.Kill()) // waits for its end
		must(n.t, n.StartDaemon(context.Background()))
	}

	n.checkKilled(op, p)
	if p.id != "" {
		must(n.t, p.remove())
	}
	must(n.t, n.Audit())
	if p.id, err = run(); err != nil {
		n.t.Errorf("making the pod again: %v", err)
	}
	must(n.t, p.remove())
	return report
}

// checkKilled looks at what the restarted daemon says of the pod, and gives p the id of the one that is there, if any.
func (n *node) checkKilled(op string, p *pod) {
	n.t.Helper()
	list, err := n.Runtime.ListPodSandbox(n.context(), &runtimeapi.ListPodSandboxRequest{})
	must(n.t, err)
	if len(list.GetItems()) > 1 || len(list.GetItems()) == 0 && op == "stop" {
		n.t.Errorf("pods: %v", list.GetItems())
	}
	for _, item := range list.GetItems() {
		if p.id != "" && item.GetId() != p.id {
			n.t.Errorf("pod %s became %s", p.id, item.GetId())
		}
		p.id = item.GetId()
		ready := item.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY
		resp, err := n.Runtime.PodSandboxStatus(n.context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
		must(n.t, err)
		if resp.GetStatus().GetState() != item.GetState() {
			n.t.Errorf("the list says %v, the status %v", item.GetState(), resp.GetStatus().GetState())
		}
		ips := p.ips()
		if want := map[bool]int{true: 2, false: 0}[ready]; len(ips) != want {
			n.t.Errorf("a pod that is ready (%v) has the addresses %v", ready, ips)
		}
		if op == "run" && !ready {
			n.t.Error("a pod that nobody knows of is kept, not ready")
		}
		other, err := n.try("other")
		must(n.t, err)
		for _, ip := range other.ips() {
			if slices.Contains(ips, ip) {
				n.t.Errorf("%s is given out twice", ip)
			}
		}
		must(n.t, other.remove())
	}
}
