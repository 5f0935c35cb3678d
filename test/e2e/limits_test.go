package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/images"
)

// attempt is every operation once, each of which succeeds or says what there is too little of. What it made it tries
// to remove.
type attempt struct {
	*pod // that there was before
	c    *container
	name string                       // of what it makes
	tell func(what string, err error) // that a call got another error than expected; nil = the test fails

	made           string // a pod, if it is there
	failed, worked int
}

// do makes one call.
func (a *attempt) do(what string, call func() error) bool {
	a.t.Helper()
	err := call()
	if err == nil {
		a.worked++
		return true
	}
	a.failed++
	if status.Code(err) != codes.ResourceExhausted {
		a.unexpected(what, err)
	}
	return false
}

// must makes one that needs nothing.
func (a *attempt) must(what string, call func() error) {
	a.t.Helper()
	if err := call(); err != nil {
		a.unexpected(what, err)
	}
}

func (a *attempt) unexpected(what string, err error) {
	a.t.Helper()
	if a.tell != nil {
		a.tell(what, err)
		return
	}
	a.t.Errorf("%s: %s: %v", a.name, what, err)
}

func (a *attempt) all() {
	a.t.Helper()
	ctx, r := a.context(), a.Runtime
	a.do("RunPodSandbox", func() error {
		resp, err := r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: a.podConfig(a.name)})
		a.made = resp.GetPodSandboxId()
		return err
	})
	var id string
	if a.do("CreateContainer", func() (err error) { id, err = a.tryCreate(a.containerConfig(a.name, forever)); return err }) {
		a.do("StartContainer", func() error {
			_, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
			return err
		})
		a.do("StopContainer", func() error {
			_, err := r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
			return err
		})
		a.do("RemoveContainer", func() error {
			_, err := r.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
			return err
		})
	}
	a.do("ExecSync", func() error { _, err := a.c.execSync(30, "true"); return err })
	a.do("UpdateContainerResources", func() error {
		_, err := r.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: a.c.id,
			Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512}})
		return err
	})
	a.do("ReopenContainerLog", func() error {
		_, err := r.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: a.c.id})
		return err
	})
	a.do("PullImage", func() error {
		_, err := a.Image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: images.Users}})
		return err
	})
	a.do("RemoveImage", func() error {
		_, err := a.Image.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: images.Users}})
		return err
	})
	a.do("ListContainerStats", func() error {
		_, err := r.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
		return err
	})
	a.do("ImageFsInfo", func() error { _, err := a.Image.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{}); return err })
	a.must("Exec", func() error {
		_, err := r.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: a.c.id, Cmd: []string{"true"}, Stdout: true})
		return err
	})
	a.must("ListPodSandbox", func() error { _, err := r.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); return err })
	a.must("ListContainers", func() error { _, err := r.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); return err })
	a.must("ContainerStatus", func() error {
		_, err := r.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: a.c.id})
		return err
	})
	a.must("ListImages", func() error { _, err := a.Image.ListImages(ctx, &runtimeapi.ListImagesRequest{}); return err })
	if a.made == "" {
		return
	}
	stopped := a.do("StopPodSandbox", func() error {
		_, err := r.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: a.made})
		return err
	})
	if stopped && a.do("RemovePodSandbox", func() error {
		_, err := r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: a.made})
		return err
	}) {
		a.made = ""
	}
}

// again requires that all works, and that there is what there was before.
func (a *attempt) again(pid string) {
	a.t.Helper()
	a.made, a.tell = "", nil
	for _, pod := range a.pods() { // what could not be removed, or not undone, which is shown until it is removed
		if pod.GetId() == a.pod.id {
			continue
		}
		if pod.GetMetadata().GetName() != a.name {
			a.t.Errorf("%s: there is a pod %v", a.name, pod)
		}
		if err := a.removePod(pod.GetId()); err != nil {
			a.t.Errorf("%s: removing what could not be removed: %v", a.name, err)
		}
	}
	list, err := a.Runtime.ListContainers(a.context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		a.t.Fatal(err)
	}
	for _, c := range list.GetContainers() {
		if c.GetId() != a.c.id {
			if c.GetMetadata().GetName() != a.name {
				a.t.Errorf("%s: there is a container %v", a.name, c)
			}
			(&container{pod: a.pod, id: c.GetId(), name: c.GetMetadata().GetName()}).remove()
		}
	}
	a.wantShown(1, 1)
	failed := a.failed
	a.all()
	if a.failed != failed {
		a.t.Errorf("%s: it does not work afterwards", a.name)
	}
	a.wantShown(1, 1)
	if now := a.c.hostPID(); now != pid {
		a.t.Errorf("%s: the container's process was %s and is %s", a.name, pid, now)
	}
}

// A daemon without descriptors says so at each operation, leaves nothing half-made, and does all again with some.
func TestDaemonWithoutDescriptors(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	c := p.run("c", forever)
	pid := c.hostPID()
	var old unix.Rlimit
	if err := unix.Prlimit(n.PID(), unix.RLIMIT_NOFILE, nil, &old); err != nil {
		t.Fatal(err)
	}
	limit := func(cur uint64) {
		t.Helper()
		if err := unix.Prlimit(n.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: cur, Max: old.Max}, nil); err != nil {
			t.Fatal(err)
		}
	}
	failed, worked := 0, 0
	for _, spare := range []int{-3, 0, 1, 2, 4, 8, 16} {
		a := &attempt{pod: p, c: c, name: fmt.Sprintf("with-%d", spare)}
		limit(uint64(n.openFiles() + spare))
		a.all()
		limit(old.Cur)
		failed, worked = failed+a.failed, worked+a.worked
		a.again(pid)
	}
	t.Logf("%d operations failed, %d did not", failed, worked)
	if failed == 0 || worked == 0 {
		t.Error("the limits were none, or too low for anything")
	}
	if q, err := filepath.Glob(filepath.Join(n.Dir, "root", "quarantine", "*")); err != nil || len(q) > 0 {
		t.Errorf("set aside: %v, %v", q, err)
	}
}

// A daemon whose log's reader has died goes on, and so do daemon and supervisor with SIGPIPE; containers do not
// inherit that.
func TestLogReaderDies(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod")
	c := p.run("c", forever)
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(n.Dir, "gantry.log")
	if err := errors.Join(os.Rename(log, log+".1"), unix.Mkfifo(log, 0o600)); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(log, os.O_RDWR, 0) // does not wait for a writer
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if err := errors.Join(n.StartDaemon(context.Background()), reader.Close(), os.Remove(log), os.Rename(log+".1", log)); err != nil {
		t.Fatal(err)
	}
	for _, pid := range append(n.SupervisorPIDs(), n.PID()) {
		if err := unix.Kill(pid, unix.SIGPIPE); err != nil {
			t.Fatal(err)
		}
	}
	c.exec("true") // logs
	if !n.Alive() {
		t.Fatal("the daemon has ended")
	}
	again := n.runPod("again").run("c", forever)
	for what, status := range map[string]string{"exec": again.exec("cat", "/proc/self/status"), "container": again.exec("cat", "/proc/1/status")} {
		for line := range strings.Lines(status) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "SigIgn:" {
				if mask, err := strconv.ParseUint(f[1], 16, 64); err != nil || mask&(1<<(unix.SIGPIPE-1)) != 0 {
					t.Errorf("%s ignores %s, %v", what, f[1], err)
				}
			}
		}
	}
	if err := n.Restart(context.Background()); err != nil {
		t.Error(err)
	}
}

// The kernel takes the supervisor last; what it runs has the value that it was given.
func TestOOMScores(t *testing.T) {
	lowest := -999
	if !mayRaiseLimits(t) { // where nobody's is lower than that of who started the tests
		own, err := os.ReadFile("/proc/self/oom_score_adj")
		if err != nil {
			t.Fatal(err)
		}
		if lowest, err = strconv.Atoi(strings.TrimSpace(string(own))); err != nil {
			t.Fatal(err)
		}
		t.Logf("without CAP_SYS_RESOURCE nothing can have a lower value than %d, so the supervisor has that", lowest)
	}
	n := newNode(t)
	p := n.runPod("pod")
	c := p.run("c", forever, func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.OomScoreAdj = 900 })
	zero := p.run("zero", forever)
	for _, want := range []struct {
		what, got string
		value     int
	}{
		{"container", c.exec("cat", "/proc/1/oom_score_adj"), 900},
		{"exec", c.exec("cat", "/proc/self/oom_score_adj"), 900},
		{"container without one", zero.exec("cat", "/proc/1/oom_score_adj"), 0},
		{"exec without one", zero.exec("cat", "/proc/self/oom_score_adj"), 0},
	} {
		if got := strings.TrimSpace(want.got); got != strconv.Itoa(max(want.value, lowest)) {
			t.Errorf("%s has %s, want %d", want.what, got, max(want.value, lowest))
		}
	}
	supervisors := n.SupervisorPIDs()
	if len(supervisors) != 1 {
		t.Errorf("supervisors: %v", supervisors)
	}
	for _, pid := range supervisors {
		got, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
		if err != nil || strings.TrimSpace(string(got)) != strconv.Itoa(lowest) {
			t.Errorf("supervisor has %s, want %d: %v", got, lowest, err)
		}
	}
}

// mayRaiseLimits says whether the tests, and what they start, have CAP_SYS_RESOURCE.
func mayRaiseLimits(t testing.TB) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}
