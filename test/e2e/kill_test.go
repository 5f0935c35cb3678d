package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/images"
)

// The daemon is killed again and again while pods are made and removed; clients do what the kubelet does, ask again
// with the same words until they are answered. Every pod comes to its end, none is made twice, and afterwards the
// audit of the instance finds nothing. GANTRY_KILL_SEED replays the moments of a failed run as far as they can be.
func TestKilledUnderLoad(t *testing.T) {
	const workers, lives, kills = 4, 6, 12
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("GANTRY_KILL_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("GANTRY_KILL_SEED=%d", seed)
	n := newNode(t)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range lives {
				if err := n.live(fmt.Sprintf("killed-%d-%d", w, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	random := rand.New(rand.NewPCG(seed, 0))
	for range kills {
		time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond)
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := n.StartDaemon(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	left, err := n.Runtime.ListPodSandbox(n.context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(left.GetItems()) > 0 {
		t.Errorf("pods left: %v, %v", left.GetItems(), err)
	}
}

// live is the life of one pod, each request repeated until it succeeds.
func (n *node) live(name string) error {
	p := &pod{node: n, config: n.podConfig(name)}
	cc := p.containerConfig("c", "sleep 1000")
	var ctr string
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"RunPodSandbox", func(ctx context.Context) error {
			resp, err := n.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config})
			p.id = resp.GetPodSandboxId()
			return err
		}},
		{"CreateContainer", func(ctx context.Context) error {
			resp, err := n.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: cc, SandboxConfig: p.config})
			ctr = resp.GetContainerId()
			return err
		}},
		{"StartContainer", func(ctx context.Context) error {
			_, err := n.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: ctr})
			resp, serr := n.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ctr})
			if serr == nil && resp.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
				return nil // it was, before the answer was lost
			}
			if st := resp.GetStatus(); err != nil && st.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
				err = fmt.Errorf("%w; it has ended: %s, %d, %s", err, st.GetReason(), st.GetExitCode(), st.GetMessage())
			}
			return err
		}},
		{"only one pod of this name", func(ctx context.Context) error {
			resp, err := n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": name}}})
			if err == nil && (len(resp.GetItems()) != 1 || resp.GetItems()[0].GetState() != runtimeapi.PodSandboxState_SANDBOX_READY) {
				n.t.Errorf("pods named %s: %v", name, resp.GetItems())
			}
			return err
		}},
		{"ExecSync", func(ctx context.Context) error {
			resp, err := n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: ctr, Cmd: []string{"hostname"}, Timeout: 30})
			if err == nil && string(resp.GetStdout()) != name+"\n" {
				n.t.Errorf("%s: exec hostname: %v", name, resp)
			}
			return err
		}},
		{"StopPodSandbox", func(ctx context.Context) error {
			_, err := n.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
			return err
		}},
		{"the exit", func(ctx context.Context) error {
			resp, err := n.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ctr})
			if s := resp.GetStatus(); err == nil && (s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 137 || s.GetImage().GetImage() != images.Busybox) {
				n.t.Errorf("%s after its pod's stop: %v", name, s)
			}
			return err
		}},
		{"RemovePodSandbox", func(ctx context.Context) error {
			_, err := n.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
			return err
		}},
	} {
		if err := n.repeat(step.do); err != nil {
			return fmt.Errorf("pod %s: %s: %w", name, step.what, err)
		}
	}
	return nil
}

// repeat asks until it is answered well, for as long as a kubelet would still believe in the pod.
func (n *node) repeat(do func(context.Context) error) error {
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
		err = do(ctx)
		cancel()
		if err == nil {
			return nil
		}
	}
	return err
}
