package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// table holds the tests by name.
var table = map[string]struct {
	run   func(*bench, context.Context) error
	title func(*options) string
	unit  string
}{
	"pod":      {(*bench).pod, func(*options) string { return "one pod at a time" }, "ms"},
	"sandbox":  {(*bench).sandbox, func(*options) string { return "one pod at a time, without containers" }, "ms"},
	"scale":    {(*bench).scale, func(o *options) string { return fmt.Sprintf("%d pods without containers", o.scalePods) }, "ms"},
	"parallel": {(*bench).parallel, func(o *options) string { return fmt.Sprintf("%d pods, %d at a time", o.pods, o.atOnce) }, "ms unless named"},
	"recovery": {(*bench).recovery, func(o *options) string { return fmt.Sprintf("recovery of %d pods", o.recoveryPods) }, "ms"},
	"exec":     {(*bench).exec, func(*options) string { return "true in a running container" }, "ms"},
	"log":      {(*bench).log, func(*options) string { return "container log throughput" }, "MiB/s"},
}

// sleeper is the command of containers that only have to be there.
var sleeper = []string{"sleep", "1000000"}

func (r *criRuntime) execTrue(ctx context.Context, container string) error {
	_, err := r.cri.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: []string{"true"}, Timeout: 30})
	return err
}

func (b *bench) pod(ctx context.Context) error {
	for round := range b.rounds + 1 {
		for _, r := range b.runtimes {
			s := b.results[r.name]
			if round == 0 {
				s = newSample() // warming up
			}
			x, err := b.start(ctx, r, s, sleeper...)
			if err != nil {
				return err
			}
			t := time.Now()
			if err := r.execTrue(ctx, x.container); err != nil {
				return err
			}
			s.since("4 ExecSync", t)
			if err := b.stop(ctx, r, s, x); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) parallel(ctx context.Context) error {
	for _, r := range b.runtimes {
		s := b.results[r.name]
		before := r.memory()
		all := make([]running, b.pods)
		began := time.Now()
		err := b.each(func(i int) (err error) {
			all[i], err = b.start(ctx, r, s, sleeper...)
			return err
		})
		if err != nil {
			return err
		}
		s.add("~ pods started /s", float64(b.pods)/time.Since(began).Seconds())
		time.Sleep(2 * time.Second) // let heaps settle
		after, count := r.memory(), float64(b.pods)
		s.add("~ daemon idle Pss KiB", before.pss)
		s.add("~ per pod Pss KiB", (after.pss-before.pss)/count)
		s.add("~ per pod Rss KiB", (after.rss-before.rss)/count)
		s.add("~ per pod processes", (after.processes-before.processes)/count)
		if err := r.lists(ctx, s); err != nil {
			return err
		}
		began = time.Now()
		if err := b.each(func(i int) error { return b.stop(ctx, r, s, all[i]) }); err != nil {
			return err
		}
		s.add("~ pods removed /s", float64(b.pods)/time.Since(began).Seconds())
	}
	return nil
}

// each calls f for every pod number, some at a time.
func (b *bench) each(f func(int) error) error {
	var g errgroup.Group
	g.SetLimit(b.atOnce)
	for i := range b.pods {
		g.Go(func() error { return f(i) })
	}
	return g.Wait()
}

// lists times the requests that the kubelet repeats. A runtime without pod figures has no row for them.
func (r *criRuntime) lists(ctx context.Context, s *sample) error {
	for range 30 {
		t := time.Now()
		if _, err := r.cri.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); err != nil {
			return err
		}
		t = s.since("l ListContainers", t)
		if _, err := r.cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); err != nil {
			return err
		}
		s.since("l ListPodSandbox", t)
	}
	for range 5 {
		t := time.Now()
		if _, err := r.cri.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{}); err != nil {
			return err
		}
		t = s.since("l ListContainerStats", t)
		if _, err := r.cri.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{}); err == nil {
			s.since("l ListPodSandboxStats", t)
		}
	}
	return nil
}

// log lets a container write lines of 80 bytes as fast as it can, until its exit is reported.
func (b *bench) log(ctx context.Context) error {
	const line = 80
	size := b.logMiB << 20
	script := fmt.Sprintf("yes %s | head -c %d", strings.Repeat("0123456789", line/10)[:line-1], size)
	for range 3 {
		for _, r := range b.runtimes {
			began := time.Now()
			x, err := b.start(ctx, r, newSample(), "sh", "-c", script)
			if err != nil {
				return err
			}
			if err := r.waitExit(ctx, x.container); err != nil {
				return err
			}
			b.results[r.name].add("stdout to log file", float64(b.logMiB)/time.Since(began).Seconds())
			body, err := os.ReadFile(x.log)
			if err != nil {
				return err
			}
			if got, want := bytes.Count(body, []byte("\n")), (size+line-1)/line; got != want {
				return fmt.Errorf("%s: %d log lines, want %d", r.name, got, want)
			}
			if err := os.Remove(x.log); err != nil {
				return err
			}
			if err := b.stop(ctx, r, newSample(), x); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *criRuntime) waitExit(ctx context.Context, container string) error {
	for {
		resp, err := r.cri.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: container})
		if err != nil || resp.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}
