package main

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

// Requests of a pod without containers, in the order of their rows.
const (
	runPod    = "1 RunPodSandbox"
	stopPod   = "2 StopPodSandbox"
	removePod = "3 RemovePodSandbox"
)

// runSandbox makes a pod and notes what that took.
func (b *bench) runSandbox(ctx context.Context, r *criRuntime, s *sample) (running, error) {
	config, err := b.podConfig()
	if err != nil {
		return running{}, err
	}
	t := time.Now()
	p, err := r.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: r.handler})
	if err != nil {
		return running{}, err
	}
	s.since(runPod, t)
	return running{pod: p.GetPodSandboxId(), cgroup: config.GetLinux().GetCgroupParent()}, nil
}

// endSandbox stops and removes a pod and notes what that took.
func (r *criRuntime) endSandbox(ctx context.Context, s *sample, x running) error {
	t := time.Now()
	if _, err := r.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: x.pod}); err != nil {
		return err
	}
	t = s.since(stopPod, t)
	if _, err := r.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: x.pod}); err != nil {
		return err
	}
	s.since(removePod, t)
	return cgroup.RemoveEmpty(x.cgroup)
}

func (b *bench) sandbox(ctx context.Context) error {
	for round := range b.rounds + 1 {
		for _, r := range b.runtimes {
			s := b.results[r.name]
			if round == 0 {
				s = newSample() // warming up
			}
			pod, err := b.runSandbox(ctx, r, s)
			if err != nil {
				return err
			}
			if err := r.endSandbox(ctx, s, pod); err != nil {
				return err
			}
		}
	}
	return nil
}

// buckets is into how many parts of equal size scale divides the pods.
const buckets = 10

// scale makes pods one after another and then removes them one after another, last first, so that the figures of a
// bucket are those beside as many pods, whether they come or go. The runtimes have the machine one after another.
func (b *bench) scale(ctx context.Context) error {
	if b.scalePods < buckets {
		return fmt.Errorf("-scale-pods must be at least %d", buckets)
	}
	var plotted []series
	for _, r := range b.runtimes {
		parts := make([]*sample, buckets)
		for i := range parts {
			parts[i] = newSample()
		}
		part := func(i int) *sample { return parts[i*buckets/b.scalePods] }
		all := make([]running, b.scalePods)
		for i := range all {
			pod, err := b.runSandbox(ctx, r, part(i))
			if err != nil {
				return fmt.Errorf("%s: pod %d: %w", r.name, i+1, err)
			}
			all[i] = pod
		}
		for i := len(all) - 1; i >= 0; i-- {
			if err := r.endSandbox(ctx, part(i), all[i]); err != nil {
				return fmt.Errorf("%s: pod %d: %w", r.name, i+1, err)
			}
		}
		for _, request := range []string{runPod, stopPod, removePod} {
			line := series{runtime: r.name, request: request[2:]}
			for i, s := range parts {
				first, last := i*b.scalePods/buckets+1, (i+1)*b.scalePods/buckets
				for _, v := range s.values[request] {
					b.results[r.name].add(fmt.Sprintf("%s %4d-%d", request, first, last), v)
				}
				line.points = append(line.points, point{x: float64(first+last) / 2, y: quantile(s.values[request], .5)})
			}
			plotted = append(plotted, line)
		}
		time.Sleep(5 * time.Second) // the kernel takes namespaces apart behind the answers; the next runtime must not pay for it
	}
	if b.plotFile == "" {
		return nil
	}
	return writePlot(b.plotFile, b.scalePods, plotted)
}
