package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/cgroup"
)

// criRuntime is one of the runtimes that are measured.
type criRuntime struct {
	name, handler string
	processes     []string // parts of the executables or command lines of its processes
	oci           []string // its OCI runtime with the options that find its containers; empty: not known
	cri           runtimeapi.RuntimeServiceClient
	images        runtimeapi.ImageServiceClient

	// Of a runtime that the bench has started; else nil.
	end     func(context.Context) error // in order, with all that is its own
	kill    func() error                // SIGKILL of the daemon
	killAll func() error                // and of what else a pod's life depends on, all at once; nil: no pod would live on
	// restart starts the daemon again, and calls started when the process is there, with the time of before.
	restart func(ctx context.Context, started func(began time.Time)) error
}

// runtimes is the flag -rt.
type runtimes []*criRuntime

func (l *runtimes) String() string { return "" }

func (l *runtimes) Set(value string) error {
	name, rest, ok := strings.Cut(value, "=")
	fields := strings.Split(rest, ",")
	if !ok || len(fields) < 2 || len(fields) > 3 {
		return fmt.Errorf("%q: want NAME=unix://SOCKET,PROC+PROC[,HANDLER]", value)
	}
	r := &criRuntime{name: name, processes: strings.Split(fields[1], "+")}
	if len(fields) == 3 {
		r.handler = fields[2]
	}
	conn, err := grpc.NewClient(fields[0], grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return err
	}
	r.cri, r.images = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	*l = append(*l, r)
	return nil
}

func (r *criRuntime) pull(ctx context.Context, image string) error {
	_, err := r.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	return err
}

// pods numbers pods over the whole run, so that names never repeat.
var pods atomic.Int64

// podCgroups is the parent of the pods' cgroups. As the kubelet does, the bench makes a pod's cgroup before the pod
// and removes it behind it.
const podCgroups = "/gantry-bench"

func (b *bench) podConfig() (*runtimeapi.PodSandboxConfig, error) {
	name := fmt.Sprintf("bench-%d-%d", os.Getpid(), pods.Add(1))
	logs := filepath.Join(b.dir, name)
	if err := os.Mkdir(logs, 0o755); err != nil {
		return nil, err
	}
	parent := podCgroups + "/" + name
	if _, err := cgroup.MkdirParents(parent); err != nil {
		return nil, err
	}
	network := runtimeapi.NamespaceMode_POD
	if b.hostNet {
		network = runtimeapi.NamespaceMode_NODE
	}
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Uid: name, Namespace: "bench"}, Hostname: name, LogDirectory: logs,
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: parent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: network, Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}, nil
}

func (b *bench) containerConfig(command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"},
		Image: &runtimeapi.ImageSpec{Image: b.image, UserSpecifiedImage: b.image}, Command: command, LogPath: "c.log",
		Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuShares: 100, OomScoreAdj: 1000},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}}}}
}

// running is a pod with one running container.
type running struct {
	pod, container, log, cgroup string
	config                      *runtimeapi.PodSandboxConfig
}

// start makes a pod and runs a container in it, and notes what each request took.
func (b *bench) start(ctx context.Context, r *criRuntime, s *sample, command ...string) (running, error) {
	config, err := b.podConfig()
	if err != nil {
		return running{}, err
	}
	began := time.Now()
	t := began
	p, err := r.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: r.handler})
	if err != nil {
		return running{}, err
	}
	t = s.since("1 RunPodSandbox", t)
	c, err := r.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.GetPodSandboxId(),
		Config: b.containerConfig(command...), SandboxConfig: config})
	if err != nil {
		return running{}, err
	}
	t = s.since("2 CreateContainer", t)
	if _, err := r.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.GetContainerId()}); err != nil {
		return running{}, err
	}
	s.since("3 StartContainer", t)
	s.since("= pod to running", began)
	return running{pod: p.GetPodSandboxId(), container: c.GetContainerId(), log: filepath.Join(config.GetLogDirectory(), "c.log"),
		cgroup: config.GetLinux().GetCgroupParent(), config: config}, nil
}

// stop ends and removes what start has made.
func (b *bench) stop(ctx context.Context, r *criRuntime, s *sample, x running) error {
	began := time.Now()
	t := began
	for _, step := range []struct {
		name string
		call func() error
	}{
		{"5 StopContainer", func() error {
			_, err := r.cri.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: x.container})
			return err
		}},
		{"6 RemoveContainer", func() error {
			_, err := r.cri.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: x.container})
			return err
		}},
		{"7 StopPodSandbox", func() error {
			_, err := r.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: x.pod})
			return err
		}},
		{"8 RemovePodSandbox", func() error {
			_, err := r.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: x.pod})
			return err
		}},
	} {
		if err := step.call(); err != nil {
			return err
		}
		t = s.since(step.name, t)
	}
	s.since("= running to removed", began)
	return cgroup.RemoveEmpty(x.cgroup)
}

// usage is the memory of a runtime's processes.
type usage struct {
	pss, rss, processes float64 // KiB, KiB, count
}

// memory sums over the processes that belong to the runtime (proc_pid_smaps(5)).
func (r *criRuntime) memory() usage {
	var u usage
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return u
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() && r.owns(pid) {
			u.add(pid)
		}
	}
	return u
}

func (r *criRuntime) owns(pid int) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	for _, part := range r.processes {
		if strings.Contains(exe+" "+string(line), part) {
			return true
		}
	}
	return false
}

func (u *usage) add(pid int) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return // ended meanwhile
	}
	defer f.Close()
	u.processes++
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 2 {
			continue
		}
		kib, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			continue
		}
		switch fields[0] {
		case "Pss:":
			u.pss += kib
		case "Rss:":
			u.rss += kib
		}
	}
}
