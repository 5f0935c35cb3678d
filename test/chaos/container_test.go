package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
	"github.com/gantry-cri/gantry/test/killpoint"
)

// container is what a worker knows of a container.
type container struct {
	plan    containerPlan
	name    string
	config  *runtimeapi.ContainerConfig
	said    string    // what it writes to its volume
	shares  int64     // of the processor; 0: what was asked for was not answered
	logs    int       // files of its log that were rotated
	id      string    // once it has been told or found
	pid     int       // once it has been seen to run
	born    string    // the process' start time, as the kernel has it
	asked   time.Time // to start
	running time.Time // as was answered
	undone  int       // starts that may have been undone
	started bool
	removed bool
	codes   map[int32]bool // that it may end with
	exit    *runtimeapi.ContainerStatus
}

// may enters an exit code that the container may have from now on.
func (c *container) may(codes ...int32) {
	for _, code := range codes {
		c.codes[code] = true
	}
}

func (w *worker) newContainer(p *pod, name string, attempt uint32, plan containerPlan) *container {
	c := &container{plan: plan, name: fmt.Sprintf("%s-%d", name, attempt), codes: map[int32]bool{}, shares: 256}
	c.said = p.config.Metadata.Name + "/" + c.name
	image := images.Busybox
	if plan.ownImage {
		image = w.image
	}
	if plan.exits {
		c.may(plan.code)
	}
	c.config = &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name, Attempt: attempt}, Image: &runtimeapi.ImageSpec{Image: image},
		Command: []string{"sh", "-c", plan.script(c.said)}, LogPath: c.name + ".log", Labels: p.config.Labels,
		Tty: plan.tty, Stdin: plan.stdin, StdinOnce: plan.once,
		Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuShares: c.shares},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions}},
	}
	if plan.volume {
		mount := &runtimeapi.Mount{ContainerPath: "/volume", HostPath: w.volume(p, c)}
		if p.plan.kind == userNamespace {
			ids := p.config.Linux.SecurityContext.NamespaceOptions.UsernsOptions
			mount.UidMappings, mount.GidMappings = ids.Uids, ids.Gids
		}
		c.config.Mounts = []*runtimeapi.Mount{mount}
	}
	return c
}

// volume is a folder of the host's, beside the logs, where the audit does not look.
func (w *worker) volume(p *pod, c *container) string {
	return filepath.Join(p.config.LogDirectory, "volume-"+c.name)
}

// run creates it and starts it.
func (w *worker) run(c *container) error {
	if c.plan.volume {
		if err := os.MkdirAll(w.volume(w.pod, c), 0o755); err != nil {
			return err
		}
	}
	if c.plan.ownImage {
		if err := w.pullImage(); err != nil {
			return err
		}
	}
	if err := w.create(c); err != nil {
		return err
	}
	return w.start(c)
}

func (w *worker) create(c *container) error {
	err := w.until("CreateContainer", func(ctx context.Context) error {
		resp, err := w.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: w.pod.id, Config: c.config, SandboxConfig: w.pod.config})
		if err != nil {
			return err
		}
		if id := resp.GetContainerId(); c.id != "" && c.id != id {
			return fmt.Errorf("container %s became %s", c.id, id)
		}
		c.id = resp.GetContainerId()
		return nil
	}, func() (bool, error) { return w.foundContainer(c) }, false)
	if err != nil {
		return err
	}
	if found, err := w.foundContainer(c); err != nil || !found {
		return fmt.Errorf("container %s was created; listed: %v, %v", c.id, found, err)
	}
	return nil
}

// foundContainer: one that is being created is there, once and created, or it is not.
func (w *worker) foundContainer(c *container) (bool, error) {
	all, err := w.listContainers()
	if err != nil {
		return false, err
	}
	var list []*runtimeapi.Container
	for _, got := range all {
		if m := got.GetMetadata(); m.GetName() != c.config.Metadata.Name || m.GetAttempt() != c.config.Metadata.Attempt {
			continue
		}
		if got.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || got.GetId() == c.id {
			list = append(list, got)
			continue
		}
		err := w.until("RemoveContainer of a half", func(ctx context.Context) error { // could be neither made nor undone
			_, err := w.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: got.GetId()})
			return err
		}, nil, false)
		if err != nil {
			return false, err
		}
	}
	if len(list) == 0 {
		return false, nil
	}
	if got := list[0]; len(list) > 1 || got.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED || c.id != "" && c.id != got.GetId() {
		return false, fmt.Errorf("the container that is being created, %q, is %v", c.id, list)
	}
	c.id = list[0].GetId()
	return true, nil
}

func (w *worker) start(c *container) error {
	c.asked = time.Now()
	started := func() (bool, error) {
		status, pid, err := w.containerStatus(c)
		if err != nil {
			return false, err
		}
		c.started = status.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED
		return c.started, w.check(c, status, pid)
	}
	err := w.until("StartContainer", func(ctx context.Context) error {
		_, err := w.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.id})
		if err != nil {
			c.undone++
		}
		return err
	}, started, true, codes.FailedPrecondition)
	if errors.As(err, new(refusal)) && c.undone > 1 { // one before, whose answer was lost, came to its end after we had looked
		if done, lerr := started(); done || lerr != nil {
			err = lerr
		}
	}
	if err != nil {
		return err
	}
	c.started, c.running = true, time.Now()
	return w.observe(c)
}

func (w *worker) containerStatus(c *container) (status *runtimeapi.ContainerStatus, pid int, err error) {
	err = w.read("ContainerStatus", func(ctx context.Context) error {
		resp, err := w.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true}, grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		status = resp.GetStatus()
		pid, err = harness.Pid(resp)
		return err
	})
	return status, pid, err
}

// observe requires that the container is what it may be.
func (w *worker) observe(c *container) error {
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		status, pid, err := w.containerStatus(c)
		if err == nil {
			err = w.check(c, status, pid)
		}
		if err != nil || status.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || killpoint.Alive(pid) {
			return err
		}
		if time.Since(began) > giveUp { // its end has not been told yet
			return fmt.Errorf("container %s runs as process %d, which has ended", c.id, pid)
		}
	}
}

// check requires that a status is what it may be.
func (w *worker) check(c *container, status *runtimeapi.ContainerStatus, pid int) error {
	switch status.GetState() {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		if c.started {
			return fmt.Errorf("container %s was started and is %v", c.id, status)
		}
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		born := bornAt(pid)
		if c.exit != nil || c.pid != 0 && (pid != c.pid || born != "" && born != c.born) {
			return fmt.Errorf("container %s ran as process %d of %s, exit %v, and runs as process %d of %s", c.id, c.pid, c.born, c.exit, pid, born)
		}
		if born != "" {
			c.pid, c.born = pid, born
		}
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return w.checkExit(c, status)
	default:
		return fmt.Errorf("container %s is %v", c.id, status)
	}
	return nil
}

// bornAt is when a process was started, in the kernel's ticks, empty when it has ended (proc_pid_stat(5)).
func bornAt(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if err != nil || len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}

// checkExit requires that it ended as it may have, and that what was told once stays so.
func (w *worker) checkExit(c *container, status *runtimeapi.ContainerStatus) error {
	code := status.GetExitCode()
	if old := c.exit; old != nil {
		if code != old.GetExitCode() || status.GetReason() != old.GetReason() || status.GetFinishedAt() != old.GetFinishedAt() {
			return fmt.Errorf("container %s ended as %v, and is now %v", c.id, old, status)
		}
		return nil
	}
	reason := "Error"
	if code == 0 {
		reason = "Completed"
	}
	switch {
	case c.codes[code] && status.GetReason() == reason:
	case code == 255 && status.GetReason() == "Unknown" && status.GetMessage() != "" && w.faults.supervisorSince(c.asked):
		w.report.unknownExit()
	case w.lostTerminal(c) && code != 255: // what a hang-up does to a shell
	default:
		said, _ := w.log(c)
		return fmt.Errorf("container %s may end with %v, and ended as %v; its log ends: %q", c.id, c.codes, status, said[max(0, len(said)-300):])
	}
	if status.GetStartedAt() < status.GetCreatedAt() || status.GetFinishedAt() < status.GetStartedAt() {
		return fmt.Errorf("the times of container %s are out of order: %v", c.id, status)
	}
	c.exit = status
	return w.checkLog(c)
}

// lostTerminal reports whether the container may have lost its terminal, or its stdin, by the death of all that held it.
func (w *worker) lostTerminal(c *container) bool {
	return (c.plan.tty || c.plan.once) && w.faults.bothSince(c.asked)
}

func (w *worker) hasEnded(c *container) error {
	if !c.started || c.removed {
		return nil
	}
	status, pid, err := w.containerStatus(c)
	if err != nil {
		return err
	}
	if status.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		return fmt.Errorf("container %s was stopped and is %v, process %d", c.id, status, pid)
	}
	return w.check(c, status, pid)
}

// endContainer is how the plan has the container come to its end.
func (w *worker) endContainer(c *container) error {
	if c.removed {
		return nil
	}
	if err := w.observe(c); err != nil {
		return err
	}
	if err := w.await(c); err != nil {
		return err
	}
	if !c.plan.exits {
		if err := w.stop(c); err != nil {
			return err
		}
	}
	if code := c.exit.GetExitCode(); c.plan.volume && (code == exitTerm || c.plan.exits && code == c.plan.code) {
		if got, err := os.ReadFile(filepath.Join(w.volume(w.pod, c), "said")); err != nil || string(got) != c.said+"\n" {
			return fmt.Errorf("container %s has written %q to its volume: %w", c.id, got, err)
		}
	}
	if c.plan.again {
		name, attempt, plan := c.config.Metadata.Name, c.config.Metadata.Attempt+1, c.plan
		plan.again = false
		next := w.newContainer(w.pod, name, attempt, plan)
		w.pod.containers = append(w.pod.containers, next)
		if err := w.run(next); err != nil {
			return err
		}
		if err := w.endContainer(next); err != nil {
			return err
		}
	}
	return w.remove(c)
}

// await waits until a container has come to its own end, or may be stopped: by SIGTERM when it is ready for that.
func (w *worker) await(c *container) error {
	for began := time.Now(); ; time.Sleep(25 * time.Millisecond) {
		if err := w.observe(c); err != nil || c.exit != nil {
			return err
		}
		if !c.plan.exits && (c.plan.timeout == 0 || w.isReady(c) || w.lostTerminal(c)) {
			return nil
		}
		if time.Since(began) > giveUp {
			return fmt.Errorf("container %s does not come to its end, or to its service; it runs as process %d", c.id, c.pid)
		}
	}
}

func (w *worker) stop(c *container) error {
	c.may(exitTerm)
	if c.plan.timeout < patient || w.lostTerminal(c) {
		c.may(exitKilled)
	}
	if c.undone > 0 { // it may be that start that said it is ready: this one has no trap yet
		c.may(exitInit, exitKilled, exitDefault)
	} else if body, err := w.log(c); err == nil && len(body) == 0 {
		c.may(exitInit)
	}
	err := w.until("StopContainer", func(ctx context.Context) error {
		_, err := w.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: c.plan.timeout})
		return err
	}, func() (bool, error) { err := w.observe(c); return c.exit != nil, err }, false)
	if err != nil {
		return err
	}
	return w.hasEnded(c)
}

func (w *worker) remove(c *container) error {
	gone := func() (bool, error) {
		list, err := w.listContainers()
		for _, got := range list {
			if got.GetId() == c.id {
				return false, nil
			}
		}
		return err == nil, err
	}
	err := w.until("RemoveContainer", func(ctx context.Context) error {
		_, err := w.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.id})
		return err
	}, gone, false)
	if err != nil {
		return err
	}
	if done, err := gone(); err != nil || !done {
		return errors.Join(err, fmt.Errorf("container %s was removed and is listed: %v", c.id, !done))
	}
	c.removed = true
	return nil
}

var notRunning = []codes.Code{codes.FailedPrecondition, codes.NotFound}

// ask makes a request about a container that must run to be asked; done checks what was answered.
func (w *worker) ask(c *container, what string, do func(context.Context) error) error {
	if c.removed || c.exit != nil {
		return nil
	}
	err := w.until(what, do, func() (bool, error) { err := w.observe(c); return c.exit != nil, err }, true, notRunning...)
	if !errors.As(err, new(refusal)) {
		return err
	}
	look := w.observe
	if c.plan.exits { // an end is told when its output is in the log, and its process may be missed before
		look = w.await
	}
	if oerr := look(c); oerr != nil {
		return oerr
	}
	if c.exit == nil {
		return fmt.Errorf("%s of container %s, which runs: %w", what, c.id, err)
	}
	return nil
}
