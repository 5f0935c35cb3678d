package crash

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/killpoint"
)

// operation is an RPC that the daemon is killed in.
type operation struct {
	name      string
	pod       []podChange
	container func(*runtimeapi.ContainerConfig) // changes ctr; may be nil
	from      stage                             // of the subject when it is sent
	prepare   func(s *subject)                  // what it needs beside; may be nil
	do        func(s *subject) error
	again     func(s *subject) error // as its caller asks after a crash; nil: as before
	// found requires that what is there after the crash is what may be, and learns the ids of what the caller was not told.
	found func(s *subject)
	// done requires that it is what it must be when do has succeeded.
	done func(s *subject)
	// kills: it ends the sibling too.
	kills bool
	// alone: ctr has what ends with daemon and supervisor, a terminal say.
	alone bool
	// start: it is no request, but the daemon's start.
	start bool
}

const pulled = "registry.k8s.io/pause:3.9" // of few files, none of which busybox has

// operations are all of them, and some for pods of other kinds.
func operations() []operation {
	run := operation{do: (*subject).runPod, found: (*subject).foundPod, done: (*subject).isWhole}
	create := operation{
		from: ready, do: func(s *subject) error { return s.create(&s.ctr) }, found: (*subject).foundContainer, done: (*subject).isCreated,
	}
	start := operation{
		from: created, do: func(s *subject) error { return s.start(&s.ctr) }, again: (*subject).startOnce,
		found: (*subject).maybeStarted, done: (*subject).isStarted,
	}
	stopPod := operation{from: running, do: (*subject).stopPod, found: (*subject).maybeStopped, done: (*subject).isStopped, kills: true}
	removePod := operation{from: running, do: (*subject).removePod, found: (*subject).maybeStopped, done: (*subject).isRemoved, kills: true}
	all := []operation{
		run.of("RunPodSandbox", hostPort),
		run.of("RunPodSandbox+sharedPID", hostPort, sharedPID),
		run.of("RunPodSandbox+userNamespace", hostPort, userNamespace),
		run.of("RunPodSandbox+hostNetwork", hostNetwork), run.of("RunPodSandbox+bandwidth", bandwidth),
		create.of("CreateContainer"), create.of("CreateContainer+userNamespace", userNamespace),
		create.with("CreateContainer+terminal", terminal), create.with("CreateContainer+imageVolume", imageVolume),
		start.of("StartContainer"), start.of("StartContainer+sharedPID", sharedPID),
		start.with("StartContainer+terminal", terminal), start.with("StartContainer+stdinOnce", stdinOnce),
		execSync().of("ExecSync"), session().of("Exec"), attachSession().of("Attach"),
		exit().of("exit"), exit().of("exit+sharedPID", sharedPID),
		stopContainer().of("StopContainer"), removeContainer().of("RemoveContainer"),
		stopPod.of("StopPodSandbox", hostPort),
		stopPod.of("StopPodSandbox+sharedPID", hostPort, sharedPID),
		removePod.of("RemovePodSandbox", hostPort),
		removePod.of("RemovePodSandbox+sharedPID", sharedPID),
		removePod.of("RemovePodSandbox+userNamespace", userNamespace),
		updateResources().of("UpdateContainerResources"), reopenLog().of("ReopenContainerLog"),
		updatePod().of("UpdatePodSandboxResources"), updateConfig().of("UpdateRuntimeConfig"),
		restart().of("start", hostPort),
		pullImage().of("PullImage"), removeImage().of("RemoveImage"),
	}
	if noCRIU() == "" {
		all = append(all, checkpoint().of("CheckpointContainer"))
	}
	return all
}

// noCRIU is why no container can be checkpointed here, "" if it can; it is told once, of the whole program.
var noCRIU = sync.OnceValue(func() string {
	out, err := exec.Command("criu", "check").CombinedOutput()
	if err == nil {
		return ""
	}
	reason := strings.TrimSpace(fmt.Sprintf("%v: %s", err, out))
	fmt.Fprintln(os.Stderr, "CheckpointContainer is left out: criu check:", reason)
	return reason
})

func (o operation) of(name string, change ...podChange) operation {
	o.name, o.pod = name, change
	return o
}

// with is for a container of another kind. What a terminal and stdin are made of does not outlive daemon and supervisor.
func (o operation) with(name string, change func(*runtimeapi.ContainerConfig)) operation {
	o.name, o.container, o.alone = name, change, true
	return o
}

// foundPod: the pod whole or not at all; nobody knows of it who would stop a half of it.
func (s *subject) foundPod() {
	pods := s.pods()
	if len(pods) > 1 {
		s.t.Errorf("pods: %v", pods)
	}
	for _, p := range pods {
		if p.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
			s.t.Errorf("a pod that was being made is %v", p)
		}
		if s.id != "" && s.id != p.GetId() {
			s.t.Errorf("pod %s became %s", s.id, p.GetId())
		}
		s.id = p.GetId()
		s.wantAddresses(s.addresses)
	}
}

func (s *subject) wantAddresses(n int) {
	s.t.Helper()
	resp, err := s.Runtime.PodSandboxStatus(s.context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.id})
	s.must("the pod's status", err)
	got := 0
	if network := resp.GetStatus().GetNetwork(); network.GetIp() != "" {
		got = 1 + len(network.GetAdditionalIps())
	}
	if got != n {
		s.t.Errorf("the pod has %d addresses, not %d: %v", got, n, resp.GetStatus())
	}
}

// isWhole: containers run in it.
func (s *subject) isWhole() {
	s.foundPod()
	if len(s.pods()) != 1 {
		s.t.Errorf("no pod after its request was answered")
	}
	s.must("creating the container", s.create(&s.ctr))
	s.must("starting the container", s.start(&s.ctr))
	s.settle(&s.ctr)
}

func (s *subject) foundContainer() {
	list := s.containers(&s.ctr)
	if len(list) > 1 {
		s.t.Errorf("containers: %v", list)
	}
	for _, c := range list {
		if c.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED || s.ctr.id != "" && s.ctr.id != c.GetId() {
			s.t.Errorf("a container that was being made, %q, is %v", s.ctr.id, c)
		}
		s.ctr.id = c.GetId()
	}
}

func (s *subject) isCreated() {
	s.foundContainer()
	if len(s.containers(&s.ctr)) != 1 {
		s.t.Errorf("no container after its request was answered")
	}
	s.must("starting the container", s.start(&s.ctr))
	s.settle(&s.ctr)
}

// startOnce does what the kubelet does: it starts what does not run.
func (s *subject) startOnce() error {
	if status, _ := s.status(&s.ctr); status.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil
	}
	return s.start(&s.ctr)
}

func (s *subject) maybeStarted() {
	status, pid := s.status(&s.ctr)
	switch state := status.GetState(); {
	case status == nil:
		s.t.Error("the container is gone")
	case state == runtimeapi.ContainerState_CONTAINER_RUNNING && killpoint.Alive(pid):
	case state != runtimeapi.ContainerState_CONTAINER_CREATED:
		s.t.Errorf("a container that was being started is %v, process %d", status, pid)
	}
}

func (s *subject) isStarted() {
	status, pid := s.status(&s.ctr)
	if status.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || !killpoint.Alive(pid) {
		s.t.Errorf("a container that was started is %v, process %d", status, pid)
	}
	s.settle(&s.ctr)
}

// wantExit requires that the container has exited with one of these codes, or runs if it may.
func (s *subject) wantExit(c *container, mayRun bool, codes ...int32) {
	s.t.Helper()
	status, pid := s.status(c)
	switch state := status.GetState(); {
	case mayRun && state == runtimeapi.ContainerState_CONTAINER_RUNNING && pid == c.pid && killpoint.Alive(pid):
	case s.unknown && len(codes) > 0 && state == runtimeapi.ContainerState_CONTAINER_EXITED && status.GetReason() == "Unknown" &&
		status.GetExitCode() == exitUnknown && status.GetMessage() != "":
	case state != runtimeapi.ContainerState_CONTAINER_EXITED || !slices.Contains(codes, status.GetExitCode()):
		s.t.Errorf("container %s, with process %d before, is %v with process %d; may run: %v, exit codes %v", c.config.Metadata.Name, c.pid, status, pid, mayRun, codes)
	}
}

func stopContainer() operation {
	return operation{
		from: running,
		do: func(s *subject) error {
			_, err := s.Runtime.StopContainer(s.context(), &runtimeapi.StopContainerRequest{ContainerId: s.ctr.id, Timeout: 30})
			return err
		},
		found: func(s *subject) { s.wantExit(&s.ctr, true, exitTerm) },
		done:  func(s *subject) { s.wantExit(&s.ctr, false, exitTerm) },
	}
}

func removeContainer() operation {
	return operation{
		from: running,
		do: func(s *subject) error {
			_, err := s.Runtime.RemoveContainer(s.context(), &runtimeapi.RemoveContainerRequest{ContainerId: s.ctr.id})
			return err
		},
		found: func(s *subject) {
			if status, _ := s.status(&s.ctr); status != nil {
				s.wantExit(&s.ctr, true, exitKilled)
			}
		},
		done: func(s *subject) {
			if list := s.containers(&s.ctr); len(list) > 0 {
				s.t.Errorf("removed, and there: %v", list)
			}
			s.must("making the container again", s.create(&s.ctr))
		},
	}
}

const (
	exitKilled  = 137
	exitUnknown = 255 // nobody knows, as the supervisor was dead
)

// maybeStopped: the pod may be as before, or gone, or anything between that its caller can stop and remove.
func (s *subject) maybeStopped() {
	pods := s.pods()
	if len(pods) > 1 || len(pods) == 1 && pods[0].GetId() != s.id {
		s.t.Errorf("pod %s became %v", s.id, pods)
	}
	for _, p := range pods {
		if p.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
			s.wantAddresses(s.addresses)
		}
	}
	if status, _ := s.status(&s.ctr); status != nil {
		s.wantExit(&s.ctr, true, exitKilled)
	}
}

func (s *subject) isStopped() {
	if pods := s.pods(); len(pods) != 1 || pods[0].GetId() != s.id || pods[0].GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		s.t.Errorf("pod %s was stopped and is %v", s.id, pods)
	}
	s.wantAddresses(0)
	s.wantExit(&s.ctr, false, exitKilled)
}

func (s *subject) isRemoved() {
	if pods := s.pods(); len(pods) > 0 {
		s.t.Errorf("removed, and there: %v", pods)
	}
	if list := append(s.containers(&s.ctr), s.containers(&s.sibling)...); len(list) > 0 {
		s.t.Errorf("their pod was removed, and there are: %v", list)
	}
}

func updateResources() operation {
	const before, after = 256, 512
	wantShares := func(s *subject, allowed ...int64) {
		status, _ := s.status(&s.ctr)
		if got := status.GetResources().GetLinux().GetCpuShares(); !slices.Contains(allowed, got) {
			s.t.Errorf("the container has %d CPU shares, not one of %v", got, allowed)
		}
		s.wantExit(&s.ctr, true)
	}
	return operation{
		from: running,
		do: func(s *subject) error {
			_, err := s.Runtime.UpdateContainerResources(s.context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: s.ctr.id,
				Linux: &runtimeapi.LinuxContainerResources{CpuShares: after}})
			return err
		},
		found: func(s *subject) { wantShares(s, before, after) },
		done:  func(s *subject) { wantShares(s, after) },
	}
}

func reopenLog() operation {
	return operation{
		from:    running,
		prepare: func(s *subject) { s.must("rotating the log", os.Rename(s.log(&s.ctr), s.log(&s.ctr)+".1")) },
		do: func(s *subject) error {
			_, err := s.Runtime.ReopenContainerLog(s.context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: s.ctr.id})
			return err
		},
		found: func(s *subject) { s.wantExit(&s.ctr, true) },
		done: func(s *subject) {
			s.must("telling the container", unix.Kill(s.ctr.pid, unix.SIGUSR2))
			s.waitLine(&s.ctr, "again")
		},
	}
}

// removePulled removes the image that operations pull.
func (s *subject) removePulled() error {
	_, err := s.Image.RemoveImage(s.context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: pulled}})
	return err
}

// maybePulled requires that the image is there with all of its files, or not there, and reports which.
func (s *subject) maybePulled() bool {
	s.t.Helper()
	resp, err := s.Image.ImageStatus(s.context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: pulled}})
	s.must("the image's status", err)
	if resp.GetImage() == nil {
		return false
	}
	if got := s.layers(); !slices.Equal(got, s.whole) {
		s.t.Errorf("of the image there is\n  %s\nof\n  %s", strings.Join(got, "\n  "), strings.Join(s.whole, "\n  "))
	}
	return true
}

func pullImage() operation {
	return operation{
		do: func(s *subject) error {
			_, err := s.Image.PullImage(s.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: pulled}})
			return err
		},
		found: func(s *subject) { s.maybePulled() },
		done: func(s *subject) {
			if !s.maybePulled() {
				s.t.Error("the image was pulled and is not there")
			}
		},
	}
}

func removeImage() operation {
	return operation{
		prepare: func(s *subject) { s.pull(pulled) },
		do:      (*subject).removePulled,
		found:   func(s *subject) { s.maybePulled() },
		done: func(s *subject) {
			if s.maybePulled() {
				s.t.Error("the image was removed and is there")
			}
		},
	}
}
