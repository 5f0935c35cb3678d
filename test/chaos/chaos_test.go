package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

func TestMain(m *testing.M) { harness.Main(m) }

const (
	workers   = 8
	roundTime = time.Minute      // after which all ends and the host must be as before
	auditTime = 10 * time.Second // after which all stands still for a moment and the books are compared with the disk
	shortTime = 25 * time.Second // of a run that says nothing else
)

// node is the instance with what its workers and its killer share.
type node struct {
	*harness.Instance
	t        testing.TB
	seed     uint64
	began    time.Time
	handlers []string // of pods

	gate sync.RWMutex // read-locked by each request and by each deed of the killer; locked while the books are compared
	over atomic.Bool  // no life begins any more

	faults    faults
	report    report
	addresses addresses
	steady    *worker      // whose pod nobody touches
	atRest    func() error // that the host is as when there was the steady pod alone
}

// Random operations under random kills: see doc.go. GANTRY_CHAOS_SEED replays a run, GANTRY_CHAOS_TIME is how long it takes.
func TestChaos(t *testing.T) {
	harness.Require(t)
	n := &node{t: t, seed: uint64(time.Now().UnixNano()), handlers: []string{""}}
	total := shortTime
	var err error
	if s := os.Getenv("GANTRY_CHAOS_SEED"); s != "" {
		if n.seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	if s := os.Getenv("GANTRY_CHAOS_TIME"); s != "" {
		if total, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	replay := fmt.Sprintf("GANTRY_CHAOS_SEED=%d GANTRY_CHAOS_TIME=%s make chaos", n.seed, total)
	t.Log(replay)
	n.Instance = harness.New(t, harness.Config{Registry: harness.Registry(t), TOML: n.otherRuntime()})
	n.began = time.Now()
	t.Cleanup(n.clear)
	n.settle()
	end := time.Now().Add(total)
	for round := 0; time.Now().Before(end) && !n.report.failed(); round++ {
		n.round(round, min(roundTime, time.Until(end)))
	}
	if !n.report.failed() {
		n.steady.mustEnd()
	}
	for _, text := range n.report.differences {
		t.Error(text)
	}
	t.Log(n.report.String())
	if t.Failed() {
		t.Logf("again: %s; logs of the daemon and the supervisor: %q", replay, os.Getenv("GANTRY_TEST_LOGS"))
	}
}

// otherRuntime configures crun beside runc, where it is installed.
func (n *node) otherRuntime() string {
	path, err := exec.LookPath("crun")
	if err != nil {
		if os.Getenv("CI") == "true" {
			n.t.Fatal("crun is not installed: hack/install-deps.sh test")
		}
		n.t.Log("no crun: all pods are of runc")
		return ""
	}
	unmount, err := harness.MountHugetlb("chaos")
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := unmount(); err != nil {
			n.t.Error(err)
		}
	})
	n.handlers = append(n.handlers, "crun")
	return fmt.Sprintf("[runtimes.crun]\npath = %q\n", path)
}

// settle makes the steady pod, and one life of each kind of pod, for what then stays, such as lock files.
func (n *node) settle() {
	n.t.Helper()
	pull := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: images.Busybox}}
	if _, err := n.Image.PullImage(context.Background(), pull); err != nil {
		n.t.Fatal(err)
	}
	n.steady = n.newWorker(workers + 1)
	n.steady.calm = true
	if err := n.steady.begin("steady", steadyPlan()); err != nil {
		n.t.Fatal(err)
	}
	first := n.newWorker(0)
	first.calm = true
	for kind := range podKinds {
		for _, handler := range n.handlers {
			plan := podPlan{kind: kind, handler: handler, containers: []containerPlan{{exits: true}}}
			if err := first.live(fmt.Sprintf("first-%d%s", kind, handler), plan); err != nil {
				n.t.Fatalf("nobody killed yet: %v\n%s", err, first.past())
			}
		}
	}
	var err error
	if n.atRest, err = n.AuditFromNow(); err != nil {
		n.t.Fatal(err)
	}
}

// round has everybody work for a time; then all must be as before.
func (n *node) round(number int, length time.Duration) {
	n.over.Store(false)
	var all, others sync.WaitGroup
	stop := make(chan struct{})
	for i := range workers {
		all.Go(func() { n.newWorker(i).work(number) })
	}
	others.Go(func() { n.kill(number, stop) })
	others.Go(func() { n.compareBooks(stop) })
	others.Go(func() { n.reap(stop) })
	for end := time.Now().Add(length); time.Now().Before(end) && !n.report.failed(); {
		time.Sleep(50 * time.Millisecond)
	}
	n.over.Store(true)
	all.Wait()
	close(stop)
	others.Wait()
	if !n.report.failed() {
		n.rest()
	}
	n.t.Logf("%4.0f s: %s", time.Since(n.began).Seconds(), n.report.short())
}

// clear removes what a failure has left, so that the instance's own audit has nothing more to say of it.
func (n *node) clear() {
	if !n.t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), giveUp)
	defer cancel()
	err := errors.Join(n.Kill(), n.StartDaemon(ctx))
	list, lerr := n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	err = errors.Join(err, lerr)
	for _, p := range list.GetItems() {
		_, serr := n.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.GetId()})
		_, rerr := n.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.GetId()})
		err = errors.Join(err, serr, rerr)
	}
	if err != nil {
		n.t.Logf("after the failure: %v", err)
	}
}

// reap does what the host's init does with those who lose their parents.
func (n *node) reap(stop <-chan struct{}) {
	for every := time.NewTicker(100 * time.Millisecond); ; {
		select {
		case <-every.C:
			harness.Reap()
		case <-stop:
			every.Stop()
			return
		}
	}
}
