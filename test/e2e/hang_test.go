package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/disk"
)

// giveUp is how long a client waits for what hangs.
const giveUp = 700 * time.Millisecond

// bystander is a container that has nothing to do with what hangs.
func (n *node) bystander() *container { return n.runPod("bystander").run("c", forever) }

// served requires that all is well with a container: it can be seen, measured and used, and others be made.
func (c *container) served(when string) {
	c.t.Helper()
	if s := c.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		c.t.Errorf("%s a bystander is %v", when, s)
	}
	stats, err := c.Runtime.ListContainerStats(c.context(), &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{Id: c.id}})
	if err != nil || len(stats.GetStats()) != 1 || stats.GetStats()[0].GetMemory().GetUsageBytes().GetValue() == 0 {
		c.t.Errorf("%s the stats of a bystander are %v (%v)", when, stats, err)
	}
	if _, err := c.Runtime.ListPodSandboxStats(c.context(), &runtimeapi.ListPodSandboxStatsRequest{}); err != nil {
		c.t.Errorf("%s the pods' stats: %v", when, err)
	}
	if out := c.exec("echo", "here"); out != "here\n" {
		c.t.Errorf("%s an exec in a bystander says %q", when, out)
	}
	other := c.node.runPod(fmt.Sprintf("other-%d", time.Now().UnixNano()))
	if out, code := other.output("o", "echo made"); out != "made\n" || code != 0 {
		c.t.Errorf("%s another container says %q, %d", when, out, code)
	}
	if err := c.removePod(other.id); err != nil {
		c.t.Errorf("%s another pod cannot be removed: %v", when, err)
	}
}

// wantHang requires that a call ends with its caller's patience. What could be done in that time may have been.
func (n *node) wantHang(what string, err error) {
	n.t.Helper()
	if status.Code(err) != codes.DeadlineExceeded {
		n.t.Errorf("%s: %v, want DeadlineExceeded", what, err)
	}
}

// stopsHang requires that the calls hang that would end the container or its pod.
func (c *container) stopsHang(when string) {
	c.t.Helper()
	_, err := c.Runtime.StopContainer(c.within(giveUp), &runtimeapi.StopContainerRequest{ContainerId: c.id})
	c.wantHang(when+", StopContainer", err)
	c.removalsHang(when)
}

// removalsHang is that without a stop, which a container that does not run needs none of.
func (c *container) removalsHang(when string) {
	c.t.Helper()
	_, err := c.Runtime.RemoveContainer(c.within(giveUp), &runtimeapi.RemoveContainerRequest{ContainerId: c.id})
	c.wantHang(when+", RemoveContainer", err)
	_, err = c.Runtime.RemovePodSandbox(c.within(giveUp), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: c.pod.id})
	c.wantHang(when+", RemovePodSandbox", err)
}

// freed requires that the pod can be removed at last.
func (p *pod) freed() {
	p.t.Helper()
	p.eventually("the pod can be removed", func() bool { return p.removePod(p.id) == nil })
}

// A pod whose volume, or log folder, is on a file system that hangs is alone with that; the daemon can be started anew
// meanwhile, for no thread of its own waits for the file system.
func TestHangingVolume(t *testing.T) {
	d := disk.NewHanging(t)
	n := newNode(t)
	beside, p := n.bystander(), n.runPod("pod")
	config := p.containerConfig("c", "cat /vol/file", mounts(&runtimeapi.Mount{ContainerPath: "/vol", HostPath: filepath.Join(d.Dir, "sub")}))
	create := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config}
	d.Hang()
	for range 2 {
		_, err := n.Runtime.CreateContainer(n.within(giveUp), create)
		n.wantHang("CreateContainer", err)
		_, err = n.Runtime.RunPodSandbox(n.within(giveUp), &runtimeapi.RunPodSandboxRequest{Config: n.podConfig("logs", func(c *runtimeapi.PodSandboxConfig) {
			c.LogDirectory = filepath.Join(d.Dir, "sub/logs")
		})})
		n.wantHang("RunPodSandbox", err)
	}
	beside.served("while a volume hangs")
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	beside.served("after a start while a volume hangs")
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := n.Runtime.CreateContainer(n.within(giveUp), create)
	n.wantHang("CreateContainer after a start", err)
	d.Resume()
	resp, err := n.Runtime.CreateContainer(n.context(), create)
	if err != nil {
		t.Fatal(err)
	}
	c := &container{pod: p, id: resp.GetContainerId(), name: "c"}
	c.start()
	if c.waitExit(); c.logged("stdout") != "content\n" {
		t.Errorf("the volume has %q", c.logged("stdout"))
	}
}

// A volume that hangs only when the container starts holds the OCI runtime, which cannot be killed.
func TestHangingVolumeAtStart(t *testing.T) {
	for name, flags := range handlers(t) {
		t.Run(name, func(t *testing.T) {
			d := disk.NewHanging(t)
			n := newNode(t, flags...)
			beside, p := n.bystander(), n.runPod("pod")
			c := p.create("c", forever, mounts(&runtimeapi.Mount{ContainerPath: "/vol", HostPath: filepath.Join(d.Dir, "sub")}))
			d.Hang()
			_, err := n.Runtime.StartContainer(n.within(giveUp), &runtimeapi.StartContainerRequest{ContainerId: c.id})
			n.wantHang("StartContainer", err)
			d.AwaitHung(1)
			c.removalsHang("while the OCI runtime hangs")
			beside.served("while the OCI runtime hangs")
			if err := n.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			beside.served("after a start while the OCI runtime hangs")
			d.Resume()
			p.freed()
		})
	}
}

// So is a container whose devices, seccomp profile, or CDI devices' files are there.
func TestHangingFiles(t *testing.T) {
	d := disk.NewHanging(t)
	specs := t.TempDir()
	spec := fmt.Sprintf(`{"cdiVersion": "0.7.0", "kind": "v.x/c", "devices": [{"name": "d", "containerEdits":
{"mounts": [{"hostPath": %q, "containerPath": "/driver", "options": ["ro"]}]}}]}`, filepath.Join(d.Dir, "sub"))
	if err := os.WriteFile(filepath.Join(specs, "spec.json"), []byte(spec), 0o644); err != nil {
		t.Fatal(err)
	}
	n := configured(t, fmt.Sprintf("cdi_spec_dirs = [%q]\n", specs))
	beside, p := n.bystander(), n.runPod("pod")
	file := filepath.Join(d.Dir, "sub/file")
	profile := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: file}
	configs := map[string]*runtimeapi.ContainerConfig{
		"seccomp": p.containerConfig("seccomp", forever, security(func(sc *runtimeapi.LinuxContainerSecurityContext) { sc.Seccomp = profile })),
		"device": p.containerConfig("device", forever, func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: file, ContainerPath: "/dev/x", Permissions: "r"}}
		}),
		"cdi": p.containerConfig("cdi", "cat /driver/file", cdi("v.x/c=d")),
	}
	hang := func(when string) {
		for name, config := range configs {
			_, err := n.Runtime.CreateContainer(n.within(giveUp), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
			n.wantHang(name+" "+when, err)
		}
	}
	d.Hang()
	hang("at first")
	hang("again")
	beside.served("while files hang")
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	hang("after a start")
	beside.served("after a start while files hang")
	d.Resume()
	for _, name := range []string{"seccomp", "device"} { // neither is one
		_, err := p.tryCreate(configs[name])
		wantError(t, err, codes.InvalidArgument, file)
	}
	id, err := p.tryCreate(configs["cdi"])
	if err != nil {
		t.Fatal(err)
	}
	c := &container{pod: p, id: id, name: "cdi"}
	c.start()
	if c.waitExit(); c.logged("stdout") != "content\n" {
		t.Errorf("the driver has %q", c.logged("stdout"))
	}
}

// A log on a file system that hangs holds up its container's start alone. A supervisor that is killed meanwhile, and
// cannot end, is followed by one that goes on with all others; also when a container writes to such a log.
func TestHangingLog(t *testing.T) {
	d := disk.NewHanging(t)
	d.NoFlush()
	n := newNode(t)
	t.Cleanup(d.Resume) // before pods are removed
	inFile := func(c *runtimeapi.ContainerConfig) { c.LogPath = "file" }
	logTo := func(dir string) func(*runtimeapi.PodSandboxConfig) {
		return func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = dir }
	}
	beside := n.bystander()
	writing := n.runPod("writing", logTo(filepath.Join(d.Dir, "sub"))).run("c", "while :; do echo tick; sleep 0.01; done", inFile)
	c := n.runPod("pod", logTo(d.Dir)).create("c", forever, inFile)
	start := &runtimeapi.StartContainerRequest{ContainerId: c.id}
	n.eventually("the log is written", func() bool { return strings.Contains(d.Content(), "tick") })
	d.Hang()
	for range 2 {
		_, err := n.Runtime.StartContainer(n.within(giveUp), start)
		n.wantHang("StartContainer", err)
		d.AwaitHung(2)
		beside.served("while logs hang")
		for _, pid := range n.SupervisorPIDs() { // the one of before too, which may not have ended
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		n.eventually("another supervisor has taken over", func() bool {
			resp, err := beside.execSync(10, "true")
			return err == nil && resp.GetExitCode() == 0
		})
		beside.served("after the supervisor's death while logs hang")
		if s := writing.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the container whose log hangs is %v", s)
		}
	}
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	beside.served("after a start while logs hang")
	d.Resume()
	n.eventually("the container can be started", func() bool {
		_, err := n.Runtime.StartContainer(n.context(), start)
		return err == nil
	})
	before := len(d.Content())
	n.eventually("the log goes on", func() bool { return len(d.Content()) > before })
	writing.exec("true")
	c.exec("true")
}

// A process that does not heed SIGKILL, as its file system hangs, holds up its pod alone, and goes when it can.
func TestUnkillable(t *testing.T) {
	d := disk.NewHanging(t)
	n := newNode(t)
	beside, p := n.bystander(), n.runPod("pod")
	c := p.run("c", "while cat /vol/file; do :; done", mounts(&runtimeapi.Mount{ContainerPath: "/vol", HostPath: filepath.Join(d.Dir, "sub")}))
	d.Hang()
	d.AwaitHung(1)
	c.stopsHang("while a process cannot be killed")
	beside.served("while a process cannot be killed")
	if _, err := n.Runtime.ContainerStats(n.context(), &runtimeapi.ContainerStatsRequest{ContainerId: c.id}); err != nil {
		t.Errorf("its stats: %v", err)
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	beside.served("after a start while a process cannot be killed")
	c.removalsHang("after a start while a process cannot be killed")
	d.Resume()
	p.freed()
}

// A container whose cgroup somebody has frozen can be looked at, stopped and removed; an exec is refused at once.
func TestFrozenContainer(t *testing.T) {
	for name, flags := range handlers(t) {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, flags...)
			beside := n.bystander()
			for how, end := range map[string]func(*container){
				"killed":  func(c *container) { c.stop(0) },
				"stopped": func(c *container) { c.stop(1) },
				"removed": func(c *container) { c.remove() },
				"pod":     func(c *container) { c.pod.freed() },
			} {
				p := n.runPod(how)
				c := p.run("c", forever)
				file, on := c.cgroupPath("freezer.state", "cgroup.freeze"), "FROZEN"
				if cgroup2() {
					on = "1"
				}
				if err := os.WriteFile(file, []byte(on), 0); err != nil {
					t.Fatal(err)
				}
				if _, err := c.execSync(30, "true"); err == nil || status.Code(err) == codes.DeadlineExceeded {
					t.Errorf("%s: exec in a frozen container: %v", how, err)
				}
				if _, err := n.Runtime.ContainerStats(n.context(), &runtimeapi.ContainerStatsRequest{ContainerId: c.id}); err != nil {
					t.Errorf("%s: its stats: %v", how, err)
				}
				end(c)
			}
			beside.served("after containers were frozen")
		})
	}
}

// An OCI runtime that does not come to its end, in whatever it is asked for, holds up its container alone.
func TestHangingRuntime(t *testing.T) {
	dir := t.TempDir()
	wrapper := filepath.Join(dir, "runc")
	// As long as there is a file with the command's name.
	script(t, wrapper, fmt.Sprintf(`for a; do case $a in run|exec|delete|checkpoint|update) while [ -e %s/$a ]; do sleep 0.05; done;; esac; done
exec %s "$@"
`, dir, realRunc(t)))
	n := configured(t, "max_checkpoint = \"256MiB\"\n", "--runtime", "slow="+wrapper)
	beside := n.bystander()
	slow, err := n.podOf("slow", "slow")
	if err != nil {
		t.Fatal(err)
	}
	hang := func(command string) (end func()) {
		touch(t, filepath.Join(dir, command))
		return func() { untouch(t, filepath.Join(dir, command)) }
	}

	c := slow.run("c", forever)
	end := hang("exec")
	_, err = c.execSync(1, "true")
	n.wantHang("ExecSync", err)
	beside.served("while an exec hangs")
	end()
	c.exec("true")

	end = hang("checkpoint")
	_, err = n.Runtime.CheckpointContainer(n.within(giveUp), &runtimeapi.CheckpointContainerRequest{ContainerId: c.id, Location: filepath.Join(dir, "archive")})
	n.wantHang("CheckpointContainer", err)
	beside.served("while a checkpoint hangs")
	end()

	end = hang("delete")
	c.stop(0)
	c.removalsHang("while its delete hangs")
	beside.served("while a delete hangs")
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	beside.served("after a start while a delete hangs")
	end()
	slow.freed()
}
