package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

// containers is the RPCs that change containers but for CreateContainer
// (create.go); containerstatus.go has those that read them.
type containers struct{ *core }

// Reasons of ContainerStatus that the kubelet and people match literally.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
	reasonUnknown    = "Unknown"

	exitStartError = 128
	exitUnknown    = 255
)

// StartContainer runs the process of a container that has been created. If the
// OCI runtime refuses, the container is exited with the reason StartError; if
// the caller gives up first, or the supervisor is killed, it is created again as before.
func (s *containers) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, err := s.index.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := c.op.lock(ctx); err != nil {
		return nil, fmt.Errorf("container %s is busy: %w", c.id, err)
	}
	defer c.op.unlock()
	if err := s.startContainer(ctx, c); err != nil {
		return nil, fmt.Errorf("starting container %s (%s): %w", c.key.name, c.id, partMissing(err))
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// startContainer does the steps of StartContainer. c.op is held.
func (s *containers) startContainer(ctx context.Context, c *container) error {
	// StopPodSandbox sets the pod's state before it asks for c.op: either it
	// finds this container running, or we find the pod stopping.
	if err := c.pod.mustBeReady(); err != nil {
		return err
	}
	if err := s.checkTarget(c); err != nil {
		return err
	}
	if err := c.on(lifecycle.ContainerStart); err != nil {
		return err
	}
	if err := s.save(c); err != nil {
		return errors.Join(err, c.on(lifecycle.ContainerUndone))
	}
	cc, began := c.getConfig(), s.index.now()
	pid, err := s.host.Start(ctx, sandbox.Container{
		ID: c.id, Runtime: c.runtime, Cgroup: c.cgroup, LogDir: c.pod.config.GetLogDirectory(), LogPath: cc.GetLogPath(),
		Terminal: cc.GetTty(), Stdin: cc.GetStdin(), StdinOnce: cc.GetStdinOnce(),
		IDs: sandboxIDs(c.pod.userns),
	})
	if ctx.Err() == nil && (errdefs.IsUnavailable(err) || errdefs.IsAlreadyExists(err)) {
		pid, err = s.startCutOff(ctx, c.id, cc.GetTty() || cc.GetStdinOnce(), err)
	}
	err = withPidsLimit(err, c.cgroup)
	switch {
	case err == nil:
		err = s.started(c, pid, began)
	case ctx.Err() != nil || errdefs.IsUnavailable(err):
		err = errors.Join(err, c.on(lifecycle.ContainerUndone))
	default:
		err = errors.Join(err, c.startFailed(err, began, s.index.now()))
	}
	return errors.Join(err, s.save(c))
}

// startCutOff is what became of a start in which the supervisor has ended: the next one has the container if its process
// was recorded, and undoes the rest. The same of a start before, which nobody could ask about then (already exists). One that
// loses with a supervisor, before the daemon holds it, its terminal or the end of its stdin is undone too.
func (s *containers) startCutOff(ctx context.Context, id string, loses bool, cause error) (pid int, err error) {
	procs, err := s.host.Processes(ctx)
	if err != nil {
		return 0, fmt.Errorf("%w; then %w", cause, err)
	}
	p, known := procs[id]
	switch {
	case !known:
		return 0, cause
	case loses:
		return 0, errors.Join(fmt.Errorf("the supervisor died with its terminal or stdin, start it again: %w", errdefs.ErrUnavailable), s.host.Undo(ctx, id))
	}
	return p.PID, nil // if it has ended, the exit is told as any other
}

// started makes the container running, and exited if its exit has been told already.
func (s *containers) started(c *container, pid int, began int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.onLocked(lifecycle.ContainerStarted); err != nil {
		return err
	}
	c.pid, c.startedAt = pid, began
	early := c.early
	c.early = nil
	if early != nil && c.isOwn(*early) {
		return c.exitLocked(*early)
	}
	return nil
}

// isOwn tells the exit of the process that runs from that of a start before,
// which was undone. c.mu is held.
func (c *container) isOwn(e sandbox.Exit) bool { return e.PID == 0 || c.pid == 0 || e.PID == c.pid }

func (c *container) startFailed(cause error, began, now int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.startedAt, c.finishedAt, c.exitCode, c.reason, c.message = began, now, exitStartError, reasonStartError, cause.Error()
	return c.onLocked(lifecycle.ContainerStartFailed)
}

// exitLocked enters how the container has ended. c.mu is held: what the CRI
// shows flips all at once.
func (c *container) exitLocked(e sandbox.Exit) error {
	if c.state == lifecycle.ContainerExited {
		return nil // told again by a replay
	}
	c.exitCode, c.finishedAt, c.message, c.pid = int32(e.Code), max(e.At.UnixNano(), c.startedAt), e.Reason, 0
	switch {
	case e.OOM:
		c.reason = reasonOOMKilled
	case e.Reason != "":
		c.reason = reasonUnknown
	case e.Code == 0:
		c.reason = reasonCompleted
	default:
		c.reason = reasonError
	}
	return c.onLocked(lifecycle.ContainerExit)
}

// StopContainer sends the stop signal, waits for timeout seconds, then kills,
// and returns when the container has ended. It may be called again meanwhile
// with a shorter timeout. Unknown and not running is success.
func (s *containers) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	c, err := s.index.container(req.GetContainerId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.stopContainer(ctx, c, seconds(req.GetTimeout())); err != nil {
		return nil, fmt.Errorf("stopping container %s (%s): %w", c.key.name, c.id, partMissing(err))
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// seconds is a duration of a request, which no value makes overflow: a century at most.
func seconds(n int64) time.Duration {
	const century = 100 * 365 * 24 * 3600
	return time.Duration(min(max(n, 0), century)) * time.Second
}

func (s *containers) stopContainer(ctx context.Context, c *container, grace time.Duration) error {
	if c.getState() == lifecycle.ContainerStarting {
		// StartContainer holds the lock, and will have settled the state when it lets go.
		if err := c.op.lock(ctx); err != nil {
			return err
		}
		c.op.unlock()
	}
	if c.getState() != lifecycle.ContainerRunning {
		return nil
	}
	if grace > 0 {
		c.mu.Lock()
		first := !c.stopped
		c.stopped = true
		c.mu.Unlock()
		if first {
			if err := s.host.Signal(ctx, c.id, syscall.Signal(c.stopSignal)); err != nil && !errdefs.IsNotFound(err) {
				c.mu.Lock()
				c.stopped = false // the next call shall send it
				c.mu.Unlock()
				return fmt.Errorf("sending signal %d: %w", c.stopSignal, err)
			}
		}
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-c.exited:
			return nil
		case <-timer.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return s.kill(ctx, c)
}

// kill kills every process of the container, if it runs, and waits for its exit to be entered.
func (s *core) kill(ctx context.Context, c *container) error {
	if c.getState() != lifecycle.ContainerRunning {
		return nil
	}
	if err := s.host.Kill(ctx, c.id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("killing: %w", err)
	}
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("killed, but it has not ended yet: %w", context.Cause(ctx))
	}
}

// killContainer is kill for a container that may be starting.
func (s *core) killContainer(ctx context.Context, c *container) error {
	if err := c.op.lock(ctx); err != nil {
		return fmt.Errorf("container %s is busy: %w", c.id, err)
	}
	defer c.op.unlock()
	if err := s.kill(ctx, c); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	return nil
}

// RemoveContainer removes a container, killing it first if it runs. Its log
// stays: that is the kubelet's. Unknown is success.
func (s *containers) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	c, err := s.index.container(req.GetContainerId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.removeContainer(ctx, c); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (s *core) removeContainer(ctx context.Context, c *container) error {
	if err := c.op.lock(ctx); err != nil {
		return fmt.Errorf("container %s is busy: %w", c.id, err)
	}
	defer c.op.unlock()
	if c.getState() == lifecycle.ContainerGone { // removed while we waited for the lock
		return nil
	}
	if err := s.kill(ctx, c); err != nil {
		return fmt.Errorf("removing container %s (%s): %w", c.key.name, c.id, partMissing(err))
	}
	if err := c.on(lifecycle.ContainerRemove); err != nil {
		return err
	}
	s.index.freeContainerKey(c)
	if err := s.save(c); err != nil {
		return err
	}
	if err := s.dropContainer(ctx, c); err != nil {
		return fmt.Errorf("removing container %s (%s): %w", c.key.name, c.id, partMissing(err))
	}
	return nil
}

// dropContainer removes what a container has on the node, whatever of it
// exists, then its record and its entry.
func (s *core) dropContainer(ctx context.Context, c *container) error {
	if err := s.host.DeleteContainer(ctx, c.id); err != nil {
		return err
	}
	if err := s.host.DeleteForgotten(ctx, c.id, c.runtime); err != nil {
		return err
	}
	// The OCI runtime removes it, unless its own state was lost with the run directory.
	if err := cgroup.RemoveEmpty(c.cgroup); err != nil {
		return err
	}
	if err := s.images.Unmount(ctx, c.id); err != nil {
		return err
	}
	c.recordMu.Lock()
	err := s.ctrStore.Delete(c.id)
	c.gone = err == nil
	c.recordMu.Unlock()
	if err != nil {
		return err
	}
	s.index.removeContainer(c)
	c.end()
	return c.meter.close()
}

// save writes the container's record as it is now, unless it was deleted.
func (s *core) save(c *container) error {
	c.recordMu.Lock()
	defer c.recordMu.Unlock()
	if c.gone {
		return nil
	}
	return s.ctrStore.Put(c.id, c.snapshot())
}

// ReopenContainerLog lets the log go on in a new file, after the old one was renamed.
func (s *containers) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	c, err := s.index.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if state := c.getState(); state != lifecycle.ContainerRunning {
		return nil, fmt.Errorf("container %s is %v, not running: %w", c.id, state, errdefs.ErrFailedPrecondition)
	}
	if err := s.host.ReopenLog(ctx, c.id); err != nil {
		return nil, fmt.Errorf("container %s (%s): %w", c.key.name, c.id, err)
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// followExits enters the exits that the supervisor tells, until ctx ends.
func (s *core) followExits(ctx context.Context) {
	log := klog.FromContext(ctx)
	s.host.Watch(ctx, func(e sandbox.Exit) { s.exited(ctx, e) }, func(err error) {
		if err != nil {
			log.Error(err, "Supervisor is gone, connecting again")
		}
		for err = s.reconcile(ctx); err != nil && ctx.Err() == nil; err = s.reconcile(ctx) {
			log.Error(err, "Containers could not be compared with the supervisor's, trying again")
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}, func(u sandbox.Upgrade) {
		switch {
		case u.Later:
			log.Info("Supervisor is another build than the installed one, and is replaced later", "reason", u.Err)
		case u.Err != nil:
			log.Error(u.Err, "Supervisor is another build than the installed one, and goes on as it is")
		case u.Replaced:
			log.Info("Supervisor was replaced in place", "version", u.Version)
		}
	})
}

// exited enters one exit, which may have been told before.
func (s *core) exited(ctx context.Context, e sandbox.Exit) {
	c, err := s.index.container(e.ID)
	if err != nil {
		if p, err := s.index.pod(e.ID); err == nil {
			s.initExited(ctx, p)
		}
		return // removed meanwhile
	}
	c.mu.Lock()
	changed := false
	switch c.state {
	case lifecycle.ContainerStarting:
		c.early = &e
	case lifecycle.ContainerRunning:
		if changed = c.isOwn(e); changed {
			err = c.exitLocked(e)
		}
	}
	c.mu.Unlock()
	if !changed {
		return
	}
	log := klog.FromContext(ctx)
	if err = errors.Join(err, s.save(c), c.meter.close()); err != nil {
		log.Error(err, "Exit could not be written to the container's record", "container", c.id)
	}
	log.Info("Container exited", "container", c.id, "name", c.key.name, "pod", klog.KRef(c.pod.key.namespace, c.pod.key.name), "code", e.Code, "oom", e.OOM)
}

// initExited makes a pod not ready whose shared PID namespace has ended with
// its init: no container can be started in it any more. The kubelet stops it
// then and makes another. The end that a stop brings about changes nothing.
func (s *core) initExited(ctx context.Context, p *pod) {
	err := s.losePod(p)
	if errdefs.IsFailedPrecondition(err) { // it was not ready
		return
	}
	log := klog.FromContext(ctx)
	if err != nil {
		log.Error(err, "State of a pod could not be written to its record", "podID", p.id)
	}
	s.index.freePodKey(p)
	log.Info("Pod is not ready any more, its init has ended", "pod", klog.KRef(p.key.namespace, p.key.name), "podID", p.id)
}

// reconcile gives an exit to every container that runs in our books but that
// the supervisor does not know: what became of it cannot be known any more.
func (s *core) reconcile(ctx context.Context) error {
	// Listed before the supervisor is asked: one that is started meanwhile is not in its answer.
	running := slices.DeleteFunc(s.index.allContainers(nil), func(c *container) bool {
		return c.getState() != lifecycle.ContainerRunning
	})
	ready := slices.DeleteFunc(s.index.allPods(), func(p *pod) bool { return p.getState() != lifecycle.PodReady })
	procs, err := s.host.Processes(ctx)
	if err != nil {
		return err
	}
	for _, c := range running {
		if _, known := procs[c.id]; !known {
			s.lost(ctx, c)
		}
	}
	for _, p := range ready {
		if _, known := procs[p.id]; !known && sharedPID(p.config) {
			s.initExited(ctx, p)
		}
	}
	return nil
}

// lost ends a container that the supervisor does not know: what the OCI runtime still has of it, and then its entry.
func (s *core) lost(ctx context.Context, c *container) {
	if err := s.host.DeleteForgotten(ctx, c.id, c.runtime); err != nil {
		klog.FromContext(ctx).Error(err, "Container may run on that is taken for ended", "container", c.id)
	}
	s.exited(ctx, lostExit(c.id))
}

func lostExit(id string) sandbox.Exit {
	return sandbox.Exit{ID: id, Code: exitUnknown, At: time.Now(), Reason: "ended unseen: the node was restarted, or the supervisor's records were lost"}
}
