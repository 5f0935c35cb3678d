package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/cgroup"
	"github.com/gantry-cri/gantry/test/bench/containerd"
	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// cgroups is the parent of the pods' cgroups, which a kubelet makes.
const cgroups = "/gantry-bench"

// criRuntime is Gantry or a containerd.
type criRuntime struct {
	name   string
	cri    runtimeapi.RuntimeServiceClient
	images runtimeapi.ImageServiceClient
	pids   func() []int
	end    func() error
	pods   atomic.Int64
}

func startGantry(ctx context.Context, registry *images.Registry) (*criRuntime, error) {
	i, err := harness.Start(ctx, harness.Config{Registry: registry, Tmpfs: true, Flags: []string{"--log-level", "0"}})
	if err != nil {
		return nil, err
	}
	r := &criRuntime{name: "gantry", cri: i.Runtime, images: i.Image, end: i.Close}
	r.pids = func() []int { return append(i.SupervisorPIDs(), i.PID()) }
	return r, r.pull(ctx)
}

// startContainerd starts one with everything in dir but its shims' sockets, which lie in /run/containerd.
func startContainerd(ctx context.Context, path, dir string, registry *images.Registry) (*criRuntime, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	runc, err := harness.FindRunc()
	if err != nil {
		return nil, err
	}
	d, err := containerd.Start(ctx, containerd.Config{Path: path, Dir: dir, State: filepath.Join(dir, "state"), Registry: registry,
		Tables: func(version string) string { return tables(version, runc, dir) }})
	if err != nil {
		return nil, err
	}
	r := &criRuntime{name: d.Name, cri: d.Runtime, images: d.Images, pids: func() []int { return withArgument(dir) }}
	r.end = func() error {
		harness.Reap()
		return d.Close()
	}
	return r, r.pull(ctx)
}

func tables(version, runc, dir string) string {
	if version == "2" {
		return fmt.Sprintf(`[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.k8s.io/pause:3.10"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = %q
`, runc)
	}
	return fmt.Sprintf(`[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "registry.k8s.io/pause:3.10"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = %q
[plugins."io.containerd.nri.v1.nri"]
socket_path = %q
`, runc, filepath.Join(dir, "nri.sock"))
}

func (r *criRuntime) pull(ctx context.Context) error {
	_, err := r.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: images.Busybox}})
	return err
}

func (r *criRuntime) title() string { return r.name }

func (r *criRuntime) cpu() (float64, error) { return cpuOf(r.pids()) }

// criContainer is a container with a pod of its own.
type criContainer struct {
	r               *criRuntime
	pod, id, cgroup string
	share, writer   string
}

// pod runs one on the host's network, so that no plugin is needed.
func (r *criRuntime) pod(ctx context.Context, logs string) (*criContainer, *runtimeapi.PodSandboxConfig, error) {
	name := fmt.Sprintf("logs-%d-%d", os.Getpid(), r.pods.Add(1))
	c := &criContainer{r: r, cgroup: cgroups + "/" + r.name[:1] + name}
	if _, err := cgroup.MkdirParents(c.cgroup); err != nil {
		return nil, nil, err
	}
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Uid: name, Namespace: "bench"}, LogDirectory: logs,
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: c.cgroup, SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
	p, err := r.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	c.pod = p.GetPodSandboxId()
	return c, config, err
}

func (r *criRuntime) start(ctx context.Context, id, share, log string, command ...string) (container, error) {
	c, config, err := r.pod(ctx, filepath.Dir(log))
	if err != nil {
		return nil, err
	}
	c.share, c.writer = share, id
	c.id, err = r.run(ctx, c.pod, config, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: id}, Image: &runtimeapi.ImageSpec{Image: images.Busybox},
		Command: command, LogPath: filepath.Base(log), Mounts: []*runtimeapi.Mount{{ContainerPath: "/share", HostPath: share}},
	})
	return c, err
}

func (r *criRuntime) run(ctx context.Context, pod string, podConfig *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) (id string, err error) {
	config.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER}}}
	created, err := r.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: podConfig})
	if err != nil {
		return "", err
	}
	_, err = r.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.GetContainerId()})
	return created.GetContainerId(), err
}

func (c *criContainer) reopen(ctx context.Context) error {
	_, err := c.r.cri.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id})
	return err
}

// wait asks the runtime nothing before the writer has written all.
func (c *criContainer) wait(ctx context.Context) error {
	if err := waitFile(ctx, filepath.Join(c.share, c.writer+".done")); err != nil {
		return err
	}
	for {
		s, err := c.r.cri.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
		if err != nil || s.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (c *criContainer) remove(ctx context.Context) error {
	if _, err := c.r.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: c.pod}); err != nil {
		return err
	}
	if _, err := c.r.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: c.pod}); err != nil {
		return err
	}
	return cgroup.RemoveEmpty(c.cgroup)
}

// silence prints what containers without output cost the supervisor.
func (b *bench) silence(ctx context.Context, r *criRuntime) error {
	const perPod = 50
	supervisor := func() (int, error) {
		for _, pid := range r.pids() {
			if slices.Contains(withArgument("gantry-supervisor"), pid) {
				return pid, nil
			}
		}
		return 0, fmt.Errorf("no supervisor runs")
	}
	var pods []*criContainer
	defer func() {
		for _, p := range pods {
			if err := p.remove(context.WithoutCancel(ctx)); err != nil {
				fmt.Println(err)
			}
		}
	}()
	var before usage
	for i := range b.silent + 1 { // the first starts the supervisor, and is not counted
		if i%perPod == 1 || i == 0 {
			logs, err := os.MkdirTemp(b.dir, "silent-")
			if err != nil {
				return err
			}
			p, _, err := r.pod(ctx, logs)
			if err != nil {
				return err
			}
			pods = append(pods, p)
		}
		pod := pods[len(pods)-1]
		_, err := r.run(ctx, pod.pod, nil, &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: fmt.Sprint("c", i)}, Image: &runtimeapi.ImageSpec{Image: images.Busybox},
			Command: []string{"sleep", "1000000"}, LogPath: fmt.Sprint(i, ".log")})
		if err != nil {
			return err
		}
		if i == 0 || i == b.silent {
			time.Sleep(15 * time.Second) // what is kept for the next output goes
			pid, err := supervisor()
			if err != nil {
				return err
			}
			u, err := usageOf(pid)
			if err != nil {
				return err
			}
			if i == 0 {
				before = u
				continue
			}
			n := float64(b.silent)
			fmt.Printf("\nsupervisor with %d silent containers: Rss %.1f MiB, Pss %.1f MiB\n", b.silent, u.rss/1024, u.pss/1024)
			fmt.Printf("  each container: Rss %.1f KiB, Pss %.1f KiB, %.1f descriptors, %.1f threads\n",
				(u.rss-before.rss)/n, (u.pss-before.pss)/n, (u.fds-before.fds)/n, (u.threads-before.threads)/n)
		}
	}
	return nil
}
