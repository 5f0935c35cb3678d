package runtimeservice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/runtimeservice/store"
	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/selinux"
)

// Taking over what the last run has left. What is assumed:
//
//   - A record is as it was before or after its last write, or damaged, which
//     store has set aside by now. It may be one step behind the world.
//   - The supervisor knows every process that may run, and every exit of one
//     that has not been deleted.
//   - What was made under another boot id is gone: processes, namespaces,
//     mounts. Files are not.
//   - Undoing is idempotent, so an undo that was cut off is done again whole.
//
// What belongs to no record when all of them have been read belongs to nobody.

// recoverTimeout bounds what the start waits for the supervisor, and for networks of pods that are gone.
const recoverTimeout = time.Minute

// takeOver reads the records and brings them to what the supervisor knows.
// Afterwards the exits must be followed, for settle waits for some.
func (c *core) takeOver(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	if err := c.loadRecords(ctx); err != nil {
		return err
	}
	return c.adoptProcesses(ctx)
}

func (c *core) loadRecords(ctx context.Context) error {
	log := klog.FromContext(ctx)
	podRecords, damaged, err := c.podStore.Load()
	if err != nil {
		return err
	}
	for _, err := range damaged {
		log.Error(err, "Damaged record of a pod")
	}
	for id, rec := range podRecords {
		if err := c.loadPod(id, rec); err != nil {
			log.Error(c.podStore.SetAside(id, err), "Damaged record of a pod")
		}
	}
	ctrRecords, damaged, err := c.ctrStore.Load()
	if err != nil {
		return err
	}
	for _, err := range damaged {
		log.Error(err, "Damaged record of a container")
	}
	for id, rec := range ctrRecords {
		if err := c.loadContainer(id, rec); err != nil {
			log.Error(c.ctrStore.SetAside(id, err), "Damaged record of a container")
		}
	}
	return nil
}

// records may hold fields of a newer CRI than this build knows.
var unmarshal = protojson.UnmarshalOptions{DiscardUnknown: true}

func (c *core) loadPod(id string, rec store.Pod) error {
	cfg := new(runtimeapi.PodSandboxConfig)
	if err := unmarshal.Unmarshal(rec.Config, cfg); err != nil {
		return fmt.Errorf("its config: %w", err)
	}
	if err := checkPod(c.node, id, rec, cfg); err != nil {
		return err
	}
	own, userns, err := ownNamespaces(cfg.GetLinux().GetSecurityContext().GetNamespaceOptions())
	if err != nil {
		return fmt.Errorf("its config: %w", err)
	}
	sized, err := decodeSized(rec.Sized)
	if err != nil {
		return err
	}
	p := &pod{
		id: id, key: keyOfPod(cfg), handler: rec.Handler, runtime: cmp.Or(rec.Runtime, rec.Handler, c.cfg.DefaultHandler), config: cfg, configJSON: rec.Config, own: own,
		userns: userns, createdAt: rec.CreatedAt, bootID: rec.BootID, feed: c.feed, op: newOpLock(), made: make(chan struct{}),
		state: rec.State, ips: rec.IPs, cgroups: rec.Cgroups, sized: sized,
		labels: selinux.Labels{Process: rec.ProcessLabel, Mount: rec.MountLabel},
	}
	selinux.Reserve(p.labels)
	if p.state != lifecycle.PodCreating {
		close(p.made) // settlePod does it for the others
	}
	c.index.restorePod(p)
	return nil
}

func (c *core) loadContainer(id string, rec store.Container) error {
	cfg := new(runtimeapi.ContainerConfig)
	if err := unmarshal.Unmarshal(rec.Config, cfg); err != nil {
		return fmt.Errorf("its config: %w", err)
	}
	if err := checkContainer(id, rec); err != nil {
		return err
	}
	p, ok := c.index.pods[rec.Pod]
	if !ok {
		return fmt.Errorf("its pod %q has no record", rec.Pod)
	}
	ctr := &container{
		id: id, pod: p, createdAt: rec.CreatedAt, bootID: rec.BootID, imageID: rec.ImageID, imageRef: rec.ImageRef, imageName: rec.ImageName,
		key:    containerKey{pod: rec.Pod, name: cfg.GetMetadata().GetName(), attempt: cfg.GetMetadata().GetAttempt()},
		cgroup: rec.Cgroup, stopSignal: rec.StopSignal, user: user{uid: rec.UID, gid: rec.GID, groups: rec.Groups},
		op: newOpLock(), made: make(chan struct{}), exited: make(chan struct{}),
		state: rec.State, config: cfg, configJSON: rec.Config, startedAt: rec.StartedAt, finishedAt: rec.FinishedAt,
		exitCode: rec.ExitCode, reason: rec.Reason, message: rec.Message,
	}
	if rec.Runtime != nil {
		ctr.runtime = sandbox.Runtime(*rec.Runtime)
	} else if h, err := c.handler(p.runtime); err == nil {
		ctr.runtime = c.runtime(h)
	}
	if ctr.state != lifecycle.ContainerCreating {
		close(ctr.made)
	}
	if ctr.state == lifecycle.ContainerExited || ctr.state == lifecycle.ContainerRemoving {
		close(ctr.exited)
	}
	c.index.restoreContainer(ctr)
	return nil
}

// adoptProcesses brings the containers' states to what the supervisor knows.
func (c *core) adoptProcesses(ctx context.Context) error {
	procs, err := c.host.Processes(ctx)
	if err != nil {
		return err
	}
	for _, ctr := range c.index.allContainers(nil) {
		proc, known := procs[ctr.id]
		if ctr.getState() == lifecycle.ContainerStarting {
			if !known {
				err = errors.Join(err, ctr.on(lifecycle.ContainerUndone))
				c.saveLogged(ctx, ctr)
				continue
			}
			err = errors.Join(err, ctr.on(lifecycle.ContainerStarted))
			ctr.startedAt = max(ctr.createdAt+1, ctr.startedAt)
			c.saveLogged(ctx, ctr)
		}
		if ctr.getState() != lifecycle.ContainerRunning {
			continue
		}
		switch {
		case !known:
			c.lost(ctx, ctr)
		case proc.Exit != nil:
			c.exited(ctx, *proc.Exit)
		default:
			ctr.pid = proc.PID
		}
	}
	return err
}

// saveLogged writes the record of what the next start would find out again: a
// disk that is full must not keep the daemon from starting.
func (c *core) saveLogged(ctx context.Context, ctr *container) {
	if err := c.save(ctr); err != nil {
		klog.FromContext(ctx).Error(err, "State of a container could not be written to its record", "container", ctr.id)
	}
}
