package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/disk"
	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// A disk under records and images that answers with errors from one moment on: what runs runs on and is told of, also
// how it ends; what needs the disk says which file failed, and leaves nothing; no daemon starts on it. When it can be read
// again all is as it was last written, and as the supervisor knows it.
func TestDiskFails(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			harness.Require(t)
			var dir string
			d := disk.New(t, kind, 1<<30)
			n := mounted(t, "root", &dir, func() { d.Mount(t, dir, "") })
			n.pull(images.Users)
			shared := n.runPod("shared", sharedPID)
			init := children(t, n.SupervisorPIDs()[0])
			if len(init) != 1 {
				t.Fatalf("children of the supervisor: %v", init)
			}
			p := n.runPod("pod")
			quits := p.run("quits", "trap 'exit 7' TERM; "+echo, interactive)
			runs, inShared, created := p.run("runs", echo, interactive), shared.run("c", forever), p.create("created", forever)
			removed := p.create("removed", forever)
			client := runs.attach("spdy", false)
			client.send("a\n")
			client.sees(client.out, "got a\n")
			pid := runs.pid()
			flush(t, dir)
			before, err := harness.List("/none") // all but files: some cannot be looked at
			if err == nil {
				err = d.Cut()
			}
			if err != nil {
				t.Fatal(err)
			}

			for what, call := range p.callsForDisk(created, removed, quits) {
				if err := call(); err == nil || !strings.Contains(err.Error(), "input/output error") || !strings.Contains(err.Error(), dir+"/") {
					t.Errorf("%s on a disk that fails: %v", what, err)
				}
			}
			n.wantShown(2, 5)
			client.send("b\n")
			client.sees(client.out, "got b\n")
			n.eventually("nothing is left of what has failed", func() bool {
				now, err := harness.List("/none")
				return err == nil && !slices.ContainsFunc(now, func(line string) bool { return !slices.Contains(before, line) })
			})
			quits.stop(30)
			if s := quits.waitExit(); s.GetExitCode() != 7 {
				t.Errorf("ended with %v", s)
			}
			kill(t, init[0])
			if s := inShared.waitExit(); s.GetExitCode() != 137 {
				t.Errorf("killed with its pod's init: %v", s)
			}
			n.eventually("the pod without its init is not ready", func() bool {
				return shared.status().GetState() == runtimeapi.PodSandboxState_SANDBOX_NOTREADY
			})
			n.wantShown(2, 5)
			if err := n.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := n.StartDaemon(context.Background()); err == nil || !strings.Contains(err.Error(), "input/output error") {
				t.Errorf("start on a disk that fails: %v", err)
			}
			if err := unix.Kill(pid, 0); err != nil {
				t.Errorf("the container that runs: %v", err)
			}

			kill(t, pid)
			n.renew(d, dir)
			if err := n.StartDaemon(context.Background()); err != nil {
				t.Fatal(err)
			}
			n.wantShown(2, 5)
			if n.image(images.Users) == nil {
				t.Error("an image is unknown")
			}
			for _, c := range []struct {
				*container
				code int32
			}{{quits, 7}, {runs, 137}, {inShared, 137}} {
				if s := c.waitExit(); s.GetExitCode() != c.code {
					t.Errorf("%s: %v, want exit code %d", c.name, s, c.code)
				}
			}
			if state := p.status().GetState(); state != runtimeapi.PodSandboxState_SANDBOX_READY {
				t.Errorf("the pod is %v", state)
			}
			if aside, err := filepath.Glob(filepath.Join(dir, "quarantine", "*")); err != nil || len(aside) > 0 {
				t.Errorf("set aside: %v, %v", aside, err)
			}
			if got := p.run("new", forever).exec("echo", "hello"); got != "hello\n" {
				t.Errorf("in the same pod: %q", got)
			}
			created.remove()
			n.removeImage(images.Users)
			n.pull(images.Web)
		})
	}
}

// callsForDisk are those that cannot do without a disk.
func (p *pod) callsForDisk(created, removed, other *container) map[string]func() error {
	return map[string]func() error{
		"RunPodSandbox": func() error {
			_, err := p.Runtime.RunPodSandbox(p.context(), &runtimeapi.RunPodSandboxRequest{Config: p.podConfig("new")})
			return err
		},
		"CreateContainer": func() error { _, err := p.tryCreate(p.containerConfig("new", forever)); return err },
		"StartContainer": func() error {
			_, err := p.Runtime.StartContainer(p.context(), &runtimeapi.StartContainerRequest{ContainerId: created.id})
			return err
		},
		"RemoveContainer": func() error {
			_, err := p.Runtime.RemoveContainer(p.context(), &runtimeapi.RemoveContainerRequest{ContainerId: removed.id})
			return err
		},
		"UpdateContainerResources": func() error {
			_, err := p.Runtime.UpdateContainerResources(p.context(), &runtimeapi.UpdateContainerResourcesRequest{
				ContainerId: other.id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512}})
			return err
		},
		"StopPodSandbox": func() error {
			_, err := p.Runtime.StopPodSandbox(p.context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
			return err
		},
		"PullImage": func() error {
			_, err := p.Image.PullImage(p.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: images.Web}})
			return err
		},
		"RemoveImage": func() error {
			_, err := p.Image.RemoveImage(p.context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: images.Users}})
			return err
		},
	}
}

func flush(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
}

// renew mounts the disk anew, which the kernel does when nobody uses it any more: as an operator has to.
func (n *node) renew(d *disk.Disk, dir string) {
	n.t.Helper()
	roots, err := filepath.Glob(filepath.Join(n.Dir, "run/rootfs/*/rootfs"))
	if err != nil || len(roots) == 0 {
		n.t.Fatalf("roots of containers: %v, %v", roots, err)
	}
	for _, root := range roots {
		if err := unix.Unmount(root, unix.UMOUNT_NOFOLLOW); err != nil {
			n.t.Fatal(fmt.Errorf("unmounting %s: %w", root, err))
		}
	}
	n.eventually("the disk is mounted anew", func() bool { // a process that ends keeps what is mounted a little longer
		d.Unmount(n.t)
		d.Mount(n.t, dir, "")
		return os.Chmod(dir, 0o700) == nil
	})
}
