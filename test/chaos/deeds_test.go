package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// do does a deed of the plan. Its error is a difference.
func (w *worker) do(d deed) error {
	c := w.pod.containers[d.container]
	if err := w.observe(c); err != nil {
		return err
	}
	switch d.what {
	case doExec:
		return w.exec(c, d.argument)
	case doUpdate:
		return w.update(c, d.argument)
	case doReopenLog:
		return w.reopenLog(c)
	case doStats:
		return w.stats(c)
	case doLists:
		return w.lists()
	case doAttach:
		return w.attach(c, d.argument)
	case doForward:
		return w.forward()
	case doPull:
		return w.pullImage()
	case doRemoveImage:
		return w.removeImage()
	}
	time.Sleep(time.Duration(d.argument%300) * time.Millisecond)
	return w.podIsReady()
}

// exec runs a command that says something and ends with a code.
func (w *worker) exec(c *container, argument uint32) error {
	code := int32(argument % 100)
	return w.ask(c, "ExecSync", func(ctx context.Context) error {
		resp, err := w.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Timeout: patient,
			Cmd: []string{"sh", "-c", fmt.Sprintf("echo %d; echo aside >&2; exit %d", argument, code)}})
		if err != nil {
			return err
		}
		if resp.GetExitCode() == exitKilled && (c.codes[exitTerm] || c.plan.exits) {
			return nil // the container's end was the command's
		}
		if resp.GetExitCode() != code || string(resp.GetStdout()) != fmt.Sprintln(argument) || string(resp.GetStderr()) != "aside\n" {
			return fmt.Errorf("the command says %d and ends with %d: %v", argument, code, resp)
		}
		return nil
	})
}

func (w *worker) update(c *container, argument uint32) error {
	before := c.shares
	shares := 128 + int64(argument%1024)
	asked := false
	err := w.ask(c, "UpdateContainerResources", func(ctx context.Context) error {
		asked = true
		_, err := w.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: shares}})
		if err == nil {
			c.shares = shares
		}
		return err
	})
	if err != nil || !asked {
		return err
	}
	status, _, err := w.containerStatus(c)
	if err != nil {
		return err
	}
	got := status.GetResources().GetLinux().GetCpuShares()
	if got != c.shares && (c.shares == shares || got != before && got != shares) {
		return fmt.Errorf("container %s had %d CPU shares, was given %d, was told so: %v; it has %d", c.id, before, shares, c.shares == shares, got)
	}
	c.shares = got
	return nil
}

func (w *worker) reopenLog(c *container) error {
	if c.removed || c.exit != nil {
		return nil
	}
	rotated := fmt.Sprintf("%s.%d", w.logFile(c), c.logs)
	if err := os.Rename(w.logFile(c), rotated); err != nil {
		return err
	}
	c.logs++
	return w.ask(c, "ReopenContainerLog", func(ctx context.Context) error {
		_, err := w.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id})
		return err
	})
}

func (w *worker) stats(c *container) error {
	return errors.Join(
		w.ask(c, "ContainerStats", func(ctx context.Context) error {
			resp, err := w.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: c.id})
			if err == nil && resp.GetStats().GetAttributes().GetId() != c.id {
				err = fmt.Errorf("stats of another: %v", resp)
			}
			return err
		}),
		w.until("PodSandboxStats", func(ctx context.Context) error {
			resp, err := w.Runtime.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: w.pod.id})
			if err == nil && resp.GetStats().GetAttributes().GetId() != w.pod.id {
				err = fmt.Errorf("stats of another: %v", resp)
			}
			return err
		}, nil, false),
		w.until("ListPodSandboxMetrics", func(ctx context.Context) error {
			_, err := w.Runtime.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
			return err
		}, nil, false),
	)
}

// lists requires that lists of all have this pod once, with its containers, and no two of the same name.
func (w *worker) lists() error {
	if err := w.podIsReady(); err != nil {
		return err
	}
	var pods *runtimeapi.ListPodSandboxResponse
	err := w.until("ListPodSandbox of all", func(ctx context.Context) (err error) {
		pods, err = w.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		return err
	}, nil, false)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, p := range pods.GetItems() {
		if name := p.GetMetadata().GetName(); seen[name] {
			return fmt.Errorf("two pods of one name: %v", pods)
		} else {
			seen[name] = true
		}
	}
	if !seen[w.pod.config.Metadata.Name] {
		return fmt.Errorf("the list of all pods has no %s: %v", w.pod.config.Metadata.Name, pods)
	}
	list, err := w.listContainers()
	if err != nil {
		return err
	}
	there := 0
	for _, c := range w.pod.containers {
		if !c.removed {
			there++
		}
	}
	if len(list) != there {
		return fmt.Errorf("there are %d containers of %d: %v", len(list), there, list)
	}
	return nil
}

func (w *worker) hasImage() (bool, error) {
	var resp *runtimeapi.ImageStatusResponse
	err := w.read("ImageStatus", func(ctx context.Context) (err error) {
		resp, err = w.Image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: w.image}})
		return err
	})
	return resp.GetImage() != nil, err
}

func (w *worker) pullImage() error {
	err := w.until("PullImage", func(ctx context.Context) error {
		_, err := w.Image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: w.image}})
		return err
	}, w.hasImage, false)
	if err != nil {
		return err
	}
	if has, err := w.hasImage(); err != nil || !has {
		return errors.Join(err, fmt.Errorf("image %s was pulled and is there: %v", w.image, has))
	}
	return nil
}

func (w *worker) removeImage() error {
	err := w.until("RemoveImage", func(ctx context.Context) error {
		_, err := w.Image.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: w.image}})
		return err
	}, nil, false)
	if err != nil {
		return err
	}
	if has, err := w.hasImage(); err != nil || has {
		return errors.Join(err, fmt.Errorf("image %s was removed and is there: %v", w.image, has))
	}
	return nil
}
