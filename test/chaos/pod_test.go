package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pod is what a worker knows of its pod.
type pod struct {
	plan       podPlan
	config     *runtimeapi.PodSandboxConfig
	id         string // once it has been told or found
	ips        []string
	containers []*container
}

// addresses are those of pods that have been answered and that nobody has asked to stop.
type addresses struct {
	mu    sync.Mutex
	taken map[string]string
}

// take enters the addresses of a pod, which no other may have.
func (a *addresses) take(pod string, ips []string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.taken == nil {
		a.taken = map[string]string{}
	}
	for _, ip := range ips {
		if other, ok := a.taken[ip]; ok && other != pod {
			return fmt.Errorf("pods %s and %s both have the address %s", pod, other, ip)
		}
		a.taken[ip] = pod
	}
	return nil
}

func (a *addresses) free(ips []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, ip := range ips {
		delete(a.taken, ip)
	}
}

// namespaces are the options of a pod of the kind, and of its containers.
func (w *worker) namespaces(kind int) *runtimeapi.NamespaceOption {
	options := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	switch kind {
	case sharedPID:
		options.Pid = runtimeapi.NamespaceMode_POD
	case hostNetwork:
		options.Network = runtimeapi.NamespaceMode_NODE
	case userNamespace:
		ids := []*runtimeapi.IDMapping{{HostId: 100_000 + 65536*uint32(w.number), Length: 65536}}
		options.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	}
	return options
}

func (w *worker) newPod(name string, plan podPlan) *pod {
	if plan.kind == userNamespace {
		plan.handler = "" // Debian's crun maps no volumes
	}
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "chaos", Attempt: 1},
		Hostname: name, LogDirectory: filepath.Join(w.LogDir, name), Labels: map[string]string{"pod": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/chaos/pod-" + name,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: w.namespaces(plan.kind)}},
	}
	if plan.kind == hostPort { // the same in each life: the last one must have let go of it
		config.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, HostPort: 18000 + int32(w.number), ContainerPort: 80}}
	}
	p := &pod{plan: plan, config: config}
	for i, c := range plan.containers {
		p.containers = append(p.containers, w.newContainer(p, fmt.Sprintf("c%d", i), 0, c))
	}
	return p
}

// live is a whole life. Its error is a difference.
func (w *worker) live(name string, plan podPlan) error {
	if err := w.begin(name, plan); err != nil {
		return err
	}
	for _, d := range w.pod.plan.deeds {
		if err := w.do(d); err != nil {
			return err
		}
	}
	if err := w.end(); err != nil {
		return err
	}
	return os.RemoveAll(w.pod.config.LogDirectory)
}

// begin makes the pod and starts its containers.
func (w *worker) begin(name string, plan podPlan) error {
	w.history, w.pod = nil, w.newPod(name, plan)
	w.note("pod %s: %+v", name, w.pod.plan)
	if err := w.runPod(); err != nil {
		return err
	}
	for _, c := range w.pod.containers {
		if err := w.run(c); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) runPod() error {
	p := w.pod
	err := w.until("RunPodSandbox", func(ctx context.Context) error {
		resp, err := w.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: p.plan.handler})
		if err != nil {
			return err
		}
		if id := resp.GetPodSandboxId(); p.id != "" && p.id != id {
			return fmt.Errorf("the pod was %s and is %s", p.id, id)
		}
		p.id = resp.GetPodSandboxId()
		return nil
	}, w.foundPod, false)
	if err != nil {
		return err
	}
	return w.podIsReady()
}

// foundPod: it is there, once and ready, or it is not. What could be neither made nor undone is not ready; the kubelet
// removes such a pod.
func (w *worker) foundPod() (bool, error) {
	list, err := w.listPods()
	if err != nil {
		return false, err
	}
	var ready []*runtimeapi.PodSandbox
	for _, got := range list {
		if got.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY || got.GetId() == w.pod.id {
			ready = append(ready, got)
			continue
		}
		err := w.until("RemovePodSandbox of a half", func(ctx context.Context) error {
			_, serr := w.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: got.GetId()})
			if serr != nil {
				return serr
			}
			_, rerr := w.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: got.GetId()})
			return rerr
		}, nil, false)
		if err != nil {
			return false, err
		}
	}
	if len(ready) == 0 {
		return false, nil
	}
	if got := ready[0]; len(ready) > 1 || got.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || w.pod.id != "" && w.pod.id != got.GetId() {
		return false, fmt.Errorf("the pod that is being made, %q, is %v", w.pod.id, list)
	}
	w.pod.id = ready[0].GetId()
	return true, nil
}

func (w *worker) podStatus() (status *runtimeapi.PodSandboxStatus, err error) {
	err = w.read("PodSandboxStatus", func(ctx context.Context) error {
		resp, err := w.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: w.pod.id}, grpc.WaitForReady(true))
		status = resp.GetStatus()
		return err
	})
	return status, err
}

// podIsReady requires that it is whole, with the addresses that it had, which no other has.
func (w *worker) podIsReady() error {
	p := w.pod
	if found, err := w.foundPod(); err != nil || !found {
		return errors.Join(err, fmt.Errorf("pod %s is listed: %v", p.id, found))
	}
	status, err := w.podStatus()
	if err != nil {
		return err
	}
	var ips []string
	if ip := status.GetNetwork().GetIp(); ip != "" {
		ips = append(ips, ip)
	}
	for _, more := range status.GetNetwork().GetAdditionalIps() {
		ips = append(ips, more.GetIp())
	}
	switch {
	case status.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY:
		return fmt.Errorf("pod %s is listed as ready and is %v", p.id, status)
	case p.plan.kind == hostNetwork:
		return nil
	case len(ips) == 0 || p.ips != nil && fmt.Sprint(ips) != fmt.Sprint(p.ips):
		return fmt.Errorf("the addresses of pod %s are %v and were %v", p.id, ips, p.ips)
	}
	p.ips = ips
	return w.addresses.take(p.config.Metadata.Name, ips)
}

// end is how the plan has the pod come to its end.
func (w *worker) end() error {
	if err := w.podIsReady(); err != nil {
		return err
	}
	if w.pod.plan.end == endedByParts {
		for _, c := range w.pod.containers {
			if err := w.endContainer(c); err != nil {
				return err
			}
		}
	}
	w.addresses.free(w.pod.ips) // as soon as it is asked for, they may be another's
	for _, c := range w.pod.containers {
		c.may(exitKilled)
	}
	if w.pod.plan.end != removed {
		if err := w.stopPod(); err != nil {
			return err
		}
	}
	return w.removePod()
}

func (w *worker) stopPod() error {
	err := w.until("StopPodSandbox", func(ctx context.Context) error {
		_, err := w.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: w.pod.id})
		return err
	}, nil, false)
	if err != nil {
		return err
	}
	status, err := w.podStatus()
	if err != nil {
		return err
	}
	if status.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || status.GetNetwork().GetIp() != "" {
		return fmt.Errorf("the pod was stopped and is %v", status)
	}
	for _, c := range w.pod.containers {
		if err := w.hasEnded(c); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) removePod() error {
	gone := func() (bool, error) {
		pods, err := w.listPods()
		if err != nil {
			return false, err
		}
		return len(pods) == 0, nil
	}
	err := w.until("RemovePodSandbox", func(ctx context.Context) error {
		_, err := w.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: w.pod.id})
		return err
	}, gone, false)
	if err != nil {
		return err
	}
	pods, err := w.listPods()
	containers, cerr := w.listContainers()
	if err := errors.Join(err, cerr); err != nil || len(pods)+len(containers) > 0 {
		return fmt.Errorf("the pod was removed, and there is %v %v: %w", pods, containers, err)
	}
	err = w.request("PodSandboxStatus of none", func(ctx context.Context) error {
		_, err := w.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: w.pod.id})
		return err
	}, codes.NotFound)
	if err == nil {
		return errors.New("a pod that was removed has a status")
	}
	if !errors.As(err, new(refusal)) && !errors.As(err, new(failure)) {
		return err
	}
	for _, c := range w.pod.containers {
		if err := w.checkLog(c); err != nil {
			return err
		}
	}
	return nil
}
