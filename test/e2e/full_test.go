package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/disk"
	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// onDisk starts a node that has a small disk at one of its folders.
func onDisk(t *testing.T, folder, kind string) (n *node, dir string) {
	t.Helper()
	harness.Require(t)
	mount := func() {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=700,size=32m,nr_inodes=4096"); err != nil {
			t.Fatal(err)
		}
	}
	if kind == "ext4" {
		d := disk.New(t, kind, 64<<20, "-N", "4096")
		mount = func() { d.Mount(t, dir, "") }
	}
	return mounted(t, folder, &dir, mount), dir
}

// mounted starts a node, one of whose folders is mounted first; dir is where.
func mounted(t *testing.T, folder string, dir *string, mount func()) *node {
	t.Helper()
	prepare := func(base string) {
		*dir = filepath.Join(base, folder)
		if err := os.Mkdir(*dir, 0o700); err != nil {
			t.Fatal(err)
		}
		mount()
		if err := os.Chmod(*dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	n := &node{Instance: harness.New(t, harness.Config{Registry: harness.Registry(t), Prepare: prepare}), t: t}
	n.pull(images.Busybox)
	return n
}

// wantFull requires that what cannot be done says why and is not half done.
func (n *node) wantFull(p *pod, err error, what, why string) {
	p.t.Helper()
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), why) {
		p.t.Errorf("%s on a full disk: %v", what, err)
	}
}

// wantShown requires that what tells, tells.
func (n *node) wantShown(pods, containers int) {
	n.t.Helper()
	if got := n.pods(); len(got) != pods {
		n.t.Errorf("pods %v, want %d", got, pods)
	}
	list, err := n.Runtime.ListContainers(n.context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.GetContainers()) != containers {
		n.t.Errorf("containers %v, %v, want %d", list, err, containers)
	}
	if _, err := n.Runtime.Status(n.context(), &runtimeapi.StatusRequest{}); err != nil {
		n.t.Error(err)
	}
	if _, err := n.Image.ListImages(n.context(), &runtimeapi.ListImagesRequest{}); err != nil {
		n.t.Error(err)
	}
	if _, err := n.Image.ImageFsInfo(n.context(), &runtimeapi.ImageFsInfoRequest{}); err != nil {
		n.t.Error(err)
	}
	if _, err := n.Runtime.ListContainerStats(n.context(), &runtimeapi.ListContainerStatsRequest{}); err != nil {
		n.t.Error(err)
	}
}

// A disk under the records and images, or under /run, without a byte or an inode left: what needs some says so and
// leaves nothing, what runs runs on, what is removed is removed, also by a daemon that was started on it, and with
// space all goes on.
func TestFullDisk(t *testing.T) {
	for _, where := range []struct{ folder, kind string }{{"root", "ext4"}, {"run", "tmpfs"}} {
		for what, fill := range map[string]func(testing.TB, string){"bytes": disk.FillBytes, "inodes": disk.FillInodes} {
			t.Run(where.folder+" "+what, func(t *testing.T) {
				n, dir := onDisk(t, where.folder, where.kind)
				n.pull(images.Users)
				full := func() { fill(t, dir) } // again, after something was removed
				first, second := n.runPod("first"), n.runPod("second", sharedPID)
				c1, c2 := first.run("c1", forever), second.run("c2", forever)
				created, quits := first.create("created", forever), first.run("quits", "trap 'exit 7' TERM; while :; do sleep 1000 & wait; done")
				full()

				config := n.podConfig("new")
				t.Cleanup(func() { disk.Free(t, dir) })
				resp, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: config})
				if err == nil && where.folder == "root" && what == "inodes" { // its record has one of those that were kept
					if err := n.removePod(resp.GetPodSandboxId()); err != nil {
						t.Error(err)
					}
				} else {
					n.wantFull(first, err, "RunPodSandbox", "no space left")
				}
				_, err = first.tryCreate(first.containerConfig("new", forever))
				n.wantFull(first, err, "CreateContainer", "no space left")
				if where.folder == "root" {
					_, err = n.Image.PullImage(n.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: images.Web}})
					n.wantFull(first, err, "PullImage", "no space left")
				}
				n.wantShown(2, 4)
				if where.folder == "root" {
					c1.exec("true")
				}
				full()
				if err := n.Kill(); err != nil {
					t.Fatal(err)
				}
				full()
				if err := n.StartDaemon(context.Background()); err != nil {
					t.Fatal(err)
				}
				n.wantShown(2, 4)
				quits.stop(30)
				if s := quits.waitExit(); s.GetExitCode() != 7 {
					t.Errorf("ended with %v", s)
				}
				full()
				quits.remove()
				if where.folder == "run" {
					full()
					_, err := n.Runtime.StartContainer(n.context(), &runtimeapi.StartContainerRequest{ContainerId: created.id})
					n.wantFull(first, err, "StartContainer", "no space left")
				}
				full()
				created.remove()
				full()
				n.removeImage(images.Users)
				full()
				c1.stop(0)
				full()
				if err := n.removePod(first.id); err != nil {
					t.Errorf("removing a pod with an ended container: %v", err)
				}
				full()
				n.wantShown(1, 1)
				if s := c2.status(); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
					t.Errorf("the other container: %v", s)
				}
				if err := n.removePod(second.id); err != nil {
					t.Errorf("removing a pod with a container that runs: %v", err)
				}
				full()
				n.wantShown(0, 0)
				disk.Free(t, dir)
				again := n.runPod("new")
				if got := again.run("c", forever).exec("echo", "hello"); got != "hello\n" {
					t.Errorf("with space: %q", got)
				}
				n.pull(images.Users)
			})
		}
	}
}

// A daemon that is started on a disk that has become read-only takes over what runs and tells of it; what it cannot
// write down it refuses; and it does all again when the disk can be written, without another start.
func TestReadOnlyDisk(t *testing.T) {
	n, dir := onDisk(t, "root", "ext4")
	n.pull(images.Users)
	p := n.runPod("pod")
	c, other := p.run("c", forever), p.run("other", forever)
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatalf("remounting: %v", err)
		}
	}
	remount(unix.MS_RDONLY)
	t.Cleanup(func() { remount(0) })
	if err := n.StartDaemon(context.Background()); err != nil {
		t.Fatal(err)
	}
	n.wantShown(1, 2)
	if n.image(images.Users) == nil {
		t.Error("images are unknown")
	}
	c.exec("true")
	other.stop(0)
	if s := other.waitExit(); s.GetExitCode() != 137 {
		t.Errorf("stopped: %v", s)
	}
	for what, call := range map[string]func() error{
		"RunPodSandbox": func() error {
			_, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: n.podConfig("new")})
			return err
		},
		"CreateContainer": func() error { _, err := p.tryCreate(p.containerConfig("new", forever)); return err },
		"PullImage": func() error {
			_, err := n.Image.PullImage(n.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: images.Web}})
			return err
		},
		"RemoveImage": func() error {
			_, err := n.Image.RemoveImage(n.context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: images.Users}})
			return err
		},
		"StopPodSandbox": func() error {
			_, err := n.Runtime.StopPodSandbox(n.context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
			return err
		},
	} {
		if err := call(); err == nil || !strings.Contains(err.Error(), "read-only file system") {
			t.Errorf("%s on a read-only disk: %v", what, err)
		}
	}
	n.wantShown(1, 2)
	remount(0)
	n.removeImage(images.Users)
	n.pull(images.Web)
	other.remove()
	again := n.runPod("new")
	if got := again.run("c", forever).exec("echo", "hello"); got != "hello\n" {
		t.Errorf("with a disk that can be written: %q", got)
	}
	if err := n.removePod(p.id); err != nil {
		t.Error(err)
	}
}
