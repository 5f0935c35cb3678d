package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

// recovery fills each runtime with pods, kills its daemon and starts it again. What is timed is from the start of the
// daemon's process to its first answers to ListPodSandbox and ListContainers, which must be those of before.
func (b *bench) recovery(ctx context.Context) error {
	for _, r := range b.runtimes {
		if r.restart == nil {
			return fmt.Errorf("%s is not the bench's own to kill", r.name)
		}
		for range b.rounds {
			if err := b.recover(ctx, r, "0 no pod, after an orderly stop", func() error { return r.end(ctx) }); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
		all, err := b.fill(ctx, r)
		if err != nil {
			return fmt.Errorf("%s: filling it: %w", r.name, err)
		}
		made, err := r.ask(ctx)
		if err != nil || len(made.pods) != len(all) || len(made.containers) < len(all) {
			return fmt.Errorf("%s: of %d pods it lists %d, with %d containers: %w", r.name, len(all), len(made.pods), len(made.containers), err)
		}
		for range b.rounds {
			if err := b.recover(ctx, r, "1 kill -9", r.kill); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			if r.killAll == nil {
				continue
			}
			if err := b.recover(ctx, r, "2 the supervisor killed too", r.killAll); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
		if err := b.empty(ctx, r, all); err != nil {
			return fmt.Errorf("%s: removing its pods: %w", r.name, err)
		}
	}
	return nil
}

// state is what the lists say.
type state struct {
	pods       []*runtimeapi.PodSandbox
	containers []*runtimeapi.Container
}

// ask asks until there is an answer.
func (r *criRuntime) ask(ctx context.Context) (s state, err error) {
	for {
		pods, err := r.cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}, grpc.WaitForReady(true))
		if err == nil {
			var containers *runtimeapi.ListContainersResponse
			if containers, err = r.cri.ListContainers(ctx, &runtimeapi.ListContainersRequest{}, grpc.WaitForReady(true)); err == nil {
				return state{pods.GetItems(), containers.GetContainers()}, nil
			}
		}
		if ctx.Err() != nil || status.Code(err) != codes.Unavailable && status.Code(err) != codes.Unknown { // containerd's "not initialized yet"
			return s, err
		}
		time.Sleep(time.Millisecond)
	}
}

// differs tells how b is not a, whatever their order.
func (a state) differs(b state) error {
	slices.SortFunc(a.pods, func(x, y *runtimeapi.PodSandbox) int { return cmp.Compare(x.GetId(), y.GetId()) })
	slices.SortFunc(b.pods, func(x, y *runtimeapi.PodSandbox) int { return cmp.Compare(x.GetId(), y.GetId()) })
	slices.SortFunc(a.containers, func(x, y *runtimeapi.Container) int { return cmp.Compare(x.GetId(), y.GetId()) })
	slices.SortFunc(b.containers, func(x, y *runtimeapi.Container) int { return cmp.Compare(x.GetId(), y.GetId()) })
	if len(a.pods) != len(b.pods) || len(a.containers) != len(b.containers) {
		return fmt.Errorf("%d pods and %d containers became %d and %d", len(a.pods), len(a.containers), len(b.pods), len(b.containers))
	}
	for i, p := range a.pods {
		if !proto.Equal(p, b.pods[i]) {
			return fmt.Errorf("pod %v became %v", p, b.pods[i])
		}
	}
	for i, c := range a.containers {
		if !proto.Equal(c, b.containers[i]) {
			return fmt.Errorf("container %v became %v", c, b.containers[i])
		}
	}
	return nil
}

// recover kills and starts the daemon once.
func (b *bench) recover(ctx context.Context, r *criRuntime, row string, kill func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	before, err := r.ask(ctx)
	if err != nil {
		return err
	}
	if err := kill(); err != nil {
		return err
	}
	var after state
	var asked error
	err = r.restart(ctx, func(began time.Time) {
		if after, asked = r.ask(ctx); asked == nil {
			b.results[r.name].since(row, began)
		}
	})
	if err == nil {
		err = asked
	}
	if err == nil {
		err = before.differs(after)
	}
	return err
}

// fill makes pods with a container that runs; every tenth has another one that has exited, another tenth one that was
// created, and for every tenth there is one more pod, which is not ready.
func (b *bench) fill(ctx context.Context, r *criRuntime) (all []running, err error) {
	all = make([]running, b.recoveryPods)
	var g errgroup.Group
	g.SetLimit(b.atOnce)
	for i := range all {
		g.Go(func() (err error) {
			if all[i], err = b.start(ctx, r, newSample(), sleeper...); err != nil {
				return err
			}
			switch i % 10 {
			case 0:
				c, err := b.another(ctx, r, all[i], "true")
				if err != nil {
					return err
				}
				if _, err := r.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c}); err != nil {
					return err
				}
				return r.waitExit(ctx, c)
			case 1:
				_, err = b.another(ctx, r, all[i], sleeper...)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return all, err
	}
	for range b.recoveryPods / 10 {
		x, err := b.start(ctx, r, newSample(), sleeper...)
		if err != nil {
			return all, err
		}
		all = append(all, x)
		if _, err := r.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: x.pod}); err != nil {
			return all, err
		}
	}
	return all, nil
}

// another makes a second container in a pod.
func (b *bench) another(ctx context.Context, r *criRuntime, x running, command ...string) (string, error) {
	config := b.containerConfig(command...)
	config.Metadata.Name, config.LogPath = "another", "another.log"
	resp, err := r.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: x.pod, Config: config, SandboxConfig: x.config})
	return resp.GetContainerId(), err
}

// empty removes what fill has made.
func (b *bench) empty(ctx context.Context, r *criRuntime, all []running) error {
	var g errgroup.Group
	g.SetLimit(b.atOnce)
	for _, x := range all {
		g.Go(func() error {
			if _, err := r.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: x.pod}); err != nil {
				return err
			}
			if _, err := r.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: x.pod}); err != nil {
				return err
			}
			return cgroup.RemoveEmpty(x.cgroup)
		})
	}
	return g.Wait()
}
