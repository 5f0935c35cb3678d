package runtimeservice

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/imageservice"
	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
	"github.com/gantry-cri/gantry/runtimeservice/ocispec"
	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/inroot"
	"github.com/gantry-cri/gantry/sandbox/rollback"
	"github.com/gantry-cri/gantry/sandbox/selinux"
)

// CreateContainer makes a container's root file system and OCI bundle; nothing
// runs yet. A repeated request (same pod, name and attempt) joins the first,
// or makes the container once the first has been rolled back.
func (s *containers) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	p, err := s.index.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	name := req.GetConfig().GetMetadata().GetName()
	if err := p.mustBeReady(); err != nil {
		return nil, inContainer(err, name)
	}
	for {
		c, err := s.newContainer(ctx, p, req.GetConfig())
		if err != nil {
			return nil, inContainer(err, name)
		}
		old := s.index.addContainer(c)
		if old == nil {
			if err := s.makeContainer(ctx, c); err != nil {
				return nil, inContainer(err, name)
			}
			return &runtimeapi.CreateContainerResponse{ContainerId: c.id}, nil
		}
		select {
		case <-old.made:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the first request for container %s: %w", name, context.Cause(ctx))
		}
		switch old.getState() {
		case lifecycle.ContainerCreated:
			return &runtimeapi.CreateContainerResponse{ContainerId: old.id}, nil
		case lifecycle.ContainerStarting, lifecycle.ContainerRunning:
			return nil, fmt.Errorf("container %s with attempt %d runs already as %s, give another metadata.attempt: %w", name, c.key.attempt, old.id, errdefs.ErrAlreadyExists)
		}
		s.index.freeContainerKey(old)
	}
}

// inContainer says of an error which container it is about. It does so at the
// end: the kubelet looks at the beginning for RROUnsupported and the like.
func inContainer(err error, name string) error {
	return fmt.Errorf("%w (container %s)", partMissing(err), name)
}

// newContainer is a container in the state Creating that nobody knows yet.
func (s *containers) newContainer(ctx context.Context, p *pod, cc *runtimeapi.ContainerConfig) (*container, error) {
	if err := refuseArchive(cc.GetImage().GetImage()); err != nil {
		return nil, err
	}
	img, err := s.images.Resolve(ctx, cc.GetImage().GetImage())
	if err == nil {
		err = s.refuseCheckpoint(img)
	}
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("image %q is not on this node, pull it first: %w", cc.GetImage().GetImage(), errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, err
	}
	h, err := s.handler(p.runtime)
	if err != nil {
		return nil, err
	}
	if cc, err = s.withImageIDs(ctx, cc); err != nil {
		return nil, err
	}
	configJSON, err := protojson.Marshal(cc)
	if err != nil {
		return nil, fmt.Errorf("encoding the config: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	sig, err := stopSignal(cc.GetStopSignal(), img.Config.StopSignal)
	if err != nil {
		return nil, err
	}
	c := &container{
		id: newID(), pod: p, createdAt: s.index.now(), bootID: s.bootID,
		key:     containerKey{pod: p.id, name: cc.GetMetadata().GetName(), attempt: cc.GetMetadata().GetAttempt()},
		imageID: img.ID, imageRef: imageRef(img), imageName: imageName(cc.GetImage(), img), stopSignal: sig, runtime: s.runtime(h),
		op: newOpLock(), made: make(chan struct{}), exited: make(chan struct{}),
		state: lifecycle.ContainerCreating, config: cc, configJSON: configJSON,
	}
	if c.cgroup, err = cgroupDir(s.node, p.config, c.id); err != nil {
		return nil, err
	}
	return c, nil
}

// imageRef is what the image came as, for the pod's status: name@digest, or
// its id where it has no digest.
func imageRef(img imageservice.Image) string {
	if len(img.RepoDigests) > 0 {
		return img.RepoDigests[0]
	}
	return img.ID
}

// imageName is what people call a container's image: as the pod's author wrote
// it, else a tag of it, else what the request says.
func imageName(spec *runtimeapi.ImageSpec, img imageservice.Image) string {
	switch {
	case spec.GetUserSpecifiedImage() != "":
		return spec.GetUserSpecifiedImage()
	case len(img.RepoTags) > 0:
		return img.RepoTags[0]
	}
	return spec.GetImage()
}

// makeContainer does the steps of CreateContainer; after an error all is undone.
func (s *containers) makeContainer(ctx context.Context, c *container) (err error) {
	defer close(c.made)
	// The pod's lock, so that the pod is not removed around a container that is
	// being made or undone; and the container's, as the id is in the books by now.
	if err := c.pod.op.lock(ctx); err != nil {
		s.index.removeContainer(c)
		return fmt.Errorf("pod %s is busy: %w", c.pod.id, err)
	}
	defer c.pod.op.unlock()
	if err := c.op.lock(ctx); err != nil {
		s.index.removeContainer(c)
		return err
	}
	defer c.op.unlock()
	var undo rollback.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, s.forgetContainer(ctx, c, &undo))
		}
	}()
	if err := c.pod.mustBeReady(); err != nil {
		return err
	}
	labels, err := c.pod.containerLabels(c.config.GetLinux().GetSecurityContext())
	if err != nil {
		return err
	}
	if err := s.save(c); err != nil {
		return err
	}
	undo.Add("the root file system and the image volumes", func(ctx context.Context) error { return s.images.Unmount(ctx, c.id) })
	rootfs, err := s.images.MountMapped(ctx, c.id, c.imageID, imageIDs(c.pod.userns), labels.Mount)
	if err != nil {
		return err
	}
	img, err := s.images.Resolve(ctx, c.imageID)
	if err != nil {
		return err
	}
	h, err := s.handler(c.runtime.Handler)
	if err != nil {
		return err
	}
	undo.Add("the bundle", func(ctx context.Context) error { return s.host.DeleteContainer(ctx, c.id) })
	spec, err := s.buildSpec(ctx, c, img, rootfs, h, labels)
	if err != nil {
		return err
	}
	if err := s.host.WriteBundle(c.id, spec); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil { // the caller has gone: it will ask again
		return context.Cause(ctx)
	}
	if err := c.on(lifecycle.ContainerMade); err != nil {
		return err
	}
	return s.save(c)
}

// forgetContainer rolls a container back that could not be made. If that fails,
// it is shown as exited, so that RemoveContainer or RemovePodSandbox finishes
// what it may still have: a mount, say. Of its record it is as with forgetPod's.
func (s *containers) forgetContainer(ctx context.Context, c *container, undo *rollback.Stack) error {
	if err := undo.Undo(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Roll-back of a container is incomplete, it stays as exited until it is removed", "container", c.id)
		return errors.Join(err, s.abandonContainer(c, err))
	}
	c.recordMu.Lock()
	err := s.ctrStore.Delete(c.id)
	c.gone = true
	c.recordMu.Unlock()
	c.end()
	s.index.removeContainer(c)
	return err
}

// abandonContainer leaves a container that could be neither made nor undone to
// its removal; the next start makes the same of its record.
func (s *core) abandonContainer(c *container, cause error) error {
	s.index.freeContainerKey(c)
	now := s.index.now()
	c.mu.Lock()
	c.startedAt, c.finishedAt, c.exitCode, c.reason, c.message = now, now, exitStartError, reasonStartError, cause.Error()
	err := c.onLocked(lifecycle.ContainerRemove)
	c.mu.Unlock()
	return errors.Join(err, s.save(c))
}

// buildSpec gathers what the OCI spec depends on and builds it.
func (s *containers) buildSpec(ctx context.Context, c *container, img imageservice.Image, rootfs string, h Handler, labels selinux.Labels) (*specs.Spec, error) {
	if err := checkRootfs(rootfs); err != nil {
		return nil, err
	}
	in := ocispec.Container{ID: c.id, Config: c.config, Image: img.Config, Rootfs: rootfs, ProcessLabel: labels.Process, MountLabel: labels.Mount}
	var err error
	if in.CgroupsPath, err = ocispec.CgroupsPath(s.node, c.pod.config.GetLinux().GetCgroupParent(), c.id); err != nil {
		return nil, err
	}
	if in.User, err = resolveUser(c.config, img.Config.User, rootfs); err != nil {
		return nil, err
	}
	c.user = user{uid: in.User.UID, gid: in.User.GID, groups: in.User.Groups}
	if in.Mounts, err = s.mounts(ctx, c); err != nil {
		return nil, err
	}
	if err := s.devices(ctx, c.config, h, &in); err != nil {
		return nil, err
	}
	if err := s.cdiDevices(ctx, c.config, &in); err != nil {
		return nil, err
	}
	if in.Volumes, err = imageVolumes(img.Config, c.config, rootfs, c.pod.userns); err != nil {
		return nil, err
	}
	if in.SeccompProfile, err = s.localhostProfile(ctx, c.config); err != nil {
		return nil, err
	}
	if err := s.loadAppArmor(ctx, c.config); err != nil {
		return nil, err
	}
	if in.TargetPIDNS, err = s.targetPID(c); err != nil {
		return nil, err
	}
	paths := s.host.PodPaths(c.pod.id, c.pod.own)
	spec, warnings, err := ocispec.Build(s.nodeFor(h), s.specPod(c.pod, paths), in)
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		klog.FromContext(ctx).Info("Container is not made quite as asked for", "container", c.id, "name", c.key.name, "because", w)
	}
	uid, gid := c.pod.userns.Host(in.User.UID, in.User.GID)
	if err := inroot.MkdirAll(rootfs, spec.Process.Cwd, 0o755, int(uid), int(gid)); err != nil {
		return nil, fmt.Errorf("making the working directory %q: %w", spec.Process.Cwd, err)
	}
	if err := relabel(ctx, in.Mounts, labels.Mount, s.host.Paths().Relabel); err != nil {
		return nil, err
	}
	return spec, nil
}

// specPod is the pod as package ocispec sees it.
func (c *core) specPod(p *pod, paths sandbox.PodPaths) ocispec.Pod {
	hostname, labels := p.config.GetHostname(), p.getLabels()
	if hostname == "" || !p.own.UTS {
		hostname, _ = os.Hostname() // cannot fail: uname(2)
	}
	sp := ocispec.Pod{
		ID: p.id, Config: p.config, Hostname: hostname,
		UserNS: p.userns, UserNSPath: paths.User,
		NetNS: paths.Net, IPCNS: paths.IPC, UTSNS: paths.UTS, ShmDir: paths.Shm,
		ResolvConf:   c.host.File(p.id, sandbox.FileResolvConf),
		HostnameFile: c.host.File(p.id, sandbox.FileHostname),
		HostsFile:    c.host.File(p.id, sandbox.FileHosts),
		CgroupParent: p.config.GetLinux().GetCgroupParent(),
		ProcessLabel: labels.Process, MountLabel: labels.Mount,
	}
	if sharedPID(p.config) {
		sp.PIDNS = paths.PID
	}
	return sp
}
