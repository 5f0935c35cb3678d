package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/disk"
)

// hung is a node on which things hang, beside containers to which nothing has happened.
type hung struct {
	*node
	disk   *disk.Hanging
	beside []*container
	pod    *pod       // with a container that cannot be killed, one whose creation hangs, one that is frozen
	stuck  *container // the first of these
	create *runtimeapi.CreateContainerRequest
	slow   *container // of an OCI runtime that hangs in exec
}

func newHung(t testing.TB, pods int) *hung {
	dir := t.TempDir()
	wrapper, hangs := filepath.Join(dir, "runc"), filepath.Join(dir, "hangs")
	script(t, wrapper, fmt.Sprintf(`for a; do [ "$a" != exec ] || while [ -e %s ]; do sleep 0.2; done; done
exec %s "$@"
`, hangs, realRunc(t)))
	h := &hung{disk: disk.NewHanging(t), node: newNode(t, "--runtime", "slow="+wrapper, "--log-level", "0")}
	for i := range pods {
		h.beside = append(h.beside, h.runPod(fmt.Sprintf("pod-%d", i)).run("c", forever))
	}
	slow, err := h.podOf("slow", "slow")
	if err != nil {
		t.Fatal(err)
	}
	h.slow = slow.run("c", forever)
	touch(t, hangs)

	h.pod = h.runPod("hangs")
	volume := mounts(&runtimeapi.Mount{ContainerPath: "/vol", HostPath: filepath.Join(h.disk.Dir, "sub")})
	h.stuck = h.pod.run("stuck", "while cat /vol/file >/dev/null; do :; done", volume)
	h.create = &runtimeapi.CreateContainerRequest{PodSandboxId: h.pod.id, Config: h.pod.containerConfig("created", forever, volume), SandboxConfig: h.pod.config}
	frozen, on := h.pod.run("frozen", forever), "FROZEN"
	if cgroup2() {
		on = "1"
	}
	if err := os.WriteFile(frozen.cgroupPath("freezer.state", "cgroup.freeze"), []byte(on), 0); err != nil {
		t.Fatal(err)
	}
	h.disk.Hang()
	h.disk.AwaitHung(1)
	t.Cleanup(func() {
		untouch(t, hangs)
		h.disk.Resume()
		h.eventually("the pod that has hung can be removed", func() bool { return h.removePod(h.pod.id) == nil })
	})
	return h
}

// annoy is what a kubelet goes on to do about what hangs.
func (h *hung) annoy() error {
	var calls errgroup.Group
	for what, call := range map[string]func() error{
		"CreateContainer": func() error { _, err := h.Runtime.CreateContainer(h.within(giveUp), h.create); return err },
		"StopContainer": func() error {
			_, err := h.Runtime.StopContainer(h.within(giveUp), &runtimeapi.StopContainerRequest{ContainerId: h.stuck.id})
			return err
		},
		"ExecSync": func() error {
			_, err := h.Runtime.ExecSync(h.within(giveUp), &runtimeapi.ExecSyncRequest{ContainerId: h.slow.id, Cmd: []string{"true"}, Timeout: 1})
			return err
		},
	} {
		calls.Go(func() error {
			if err := call(); status.Code(err) != codes.DeadlineExceeded {
				return fmt.Errorf("%s: %v, want DeadlineExceeded", what, err)
			}
			return nil
		})
	}
	return calls.Wait()
}

// poll is seconds of a kubelet's polling, without its pauses, and how long each call took.
func (h *hung) poll(seconds int, took map[string][]time.Duration) {
	ctx := h.t.Context()
	timed := func(what string, call func() error) {
		began := time.Now()
		if err := call(); err != nil {
			h.t.Fatalf("%s: %v", what, err)
		}
		took[what] = append(took[what], time.Since(began))
	}
	for second := range seconds {
		timed("ListPodSandbox", func() error { _, err := h.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); return err })
		timed("ListContainers", func() error { _, err := h.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); return err })
		c := h.beside[second%len(h.beside)]
		timed("PodSandboxStatus", func() error {
			_, err := h.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: c.pod.id})
			return err
		})
		timed("ContainerStatus", func() error {
			_, err := h.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
			return err
		})
		timed("ContainerStats", func() error {
			_, err := h.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: c.id})
			return err
		})
		if second%10 != 0 {
			continue
		}
		timed("ListContainerStats", func() error {
			_, err := h.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return err
		})
		timed("ListPodSandboxStats", func() error {
			_, err := h.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return err
		})
		timed("Status", func() error { _, err := h.Runtime.Status(ctx, &runtimeapi.StatusRequest{}); return err })
		timed("ImageFsInfo", func() error { _, err := h.Image.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{}); return err })
		timed("ListImages", func() error { _, err := h.Image.ListImages(ctx, &runtimeapi.ListImagesRequest{}); return err })
		if second%30 == 0 { // a probe
			timed("ExecSync", func() error {
				_, err := h.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}, Timeout: 30})
				return err
			})
		}
	}
}

// held is what the daemon and its supervisor have of what must not grow.
type held struct {
	files, threads, children int
	kib                      int // resident
}

func (h *hung) held() (sum held) {
	h.t.Helper()
	for _, pid := range append(h.SupervisorPIDs(), h.PID()) {
		proc := fmt.Sprintf("/proc/%d/", pid)
		fds, err := os.ReadDir(proc + "fd")
		if err != nil {
			h.t.Fatal(err)
		}
		sum.files += len(fds)
		text, err := os.ReadFile(proc + "status")
		if err != nil {
			h.t.Fatal(err)
		}
		for key, value := range map[string]*int{"Threads:": &sum.threads, "VmRSS:": &sum.kib} {
			_, rest, _ := strings.Cut(string(text), key)
			var v int
			if _, err := fmt.Sscan(rest, &v); err != nil {
				h.t.Fatalf("no %s of process %d: %v", key, pid, err)
			}
			*value += v
		}
	}
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, file := range files { // those that open its paths
		if line, err := os.ReadFile(file); err == nil && strings.Contains(string(line), "-open\x00"+h.disk.Dir) {
			sum.children++
		}
	}
	return sum
}

// While things hang and calls about them run into their deadlines again and again, a kubelet's polling costs neither
// the daemon nor the supervisor memory, descriptors or threads. The whole hour: BenchmarkHangs.
func TestHangsStayFlat(t *testing.T) {
	h := newHung(t, 3)
	took := map[string][]time.Duration{}
	round := func() {
		if err := h.annoy(); err != nil {
			t.Error(err)
		}
		h.poll(60, took)
	}
	round()
	round()
	before := h.held()
	for range 4 {
		round()
	}
	var after held
	h.eventually("no more is held than before", func() bool {
		after = h.held()
		// Go makes threads as it needs them, and its heap breathes: what a call left would come several times a round.
		return after.files <= before.files+3 && after.threads <= before.threads+6 && after.children <= 1 && after.kib <= before.kib+16<<10
	})
	t.Logf("before %+v, after %+v", before, after)
}

// BenchmarkHangs is an hour of a kubelet's polling of 50 pods beside what hangs: how long its calls take, and what
// they leave. It is one run, whatever b.N (hack/bench-hang.sh).
func BenchmarkHangs(b *testing.B) {
	h := newHung(b, 50)
	took := map[string][]time.Duration{}
	h.poll(60, map[string][]time.Duration{})
	if err := h.annoy(); err != nil {
		b.Error(err)
	}
	before := h.held()
	over := make(chan struct{})
	var annoying errgroup.Group
	annoying.Go(func() error {
		for {
			select {
			case <-over:
				return nil
			default:
				if err := h.annoy(); err != nil {
					return err
				}
			}
		}
	})
	b.ResetTimer()
	h.poll(3600, took)
	b.StopTimer()
	close(over)
	if err := annoying.Wait(); err != nil {
		b.Error(err)
	}
	after := h.held()
	for range 200 { // an exec that is given up has some seconds to come to its end
		if after.files <= before.files {
			break
		}
		time.Sleep(100 * time.Millisecond)
		after = h.held()
	}
	var rows strings.Builder
	for what, times := range took {
		slices.Sort(times)
		at := func(q float64) float64 { return times[int(q*float64(len(times)-1))].Seconds() * 1e3 }
		fmt.Fprintf(&rows, "%-20s %6d calls   p50 %7.2f ms   p99 %7.2f ms   max %7.2f ms\n", what, len(times), at(.5), at(.99), at(1))
	}
	lines := strings.Split(strings.TrimSpace(rows.String()), "\n")
	slices.Sort(lines)
	fmt.Printf("\n%s\nbefore %+v\nafter  %+v (KiB resident; daemon and supervisor)\n", strings.Join(lines, "\n"), before, after)
}
