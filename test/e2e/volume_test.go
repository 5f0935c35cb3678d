package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

const dataImage = "registry.k8s.io/gantry/volume:1"

// pullData pulls an image of files, with links in it that lead as far out as they can.
func (n *node) pullData() string {
	n.t.Helper()
	var layers [2]bytes.Buffer
	for i, files := range [][]tar.Header{
		{{Name: "conf/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "conf/a", Mode: 0o644, Size: 2}, {Name: "conf/gone", Mode: 0o644, Size: 2}, {Name: "tool", Mode: 0o755, Size: 2}},
		{{Name: "conf/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "conf/.wh.gone"}, {Name: "conf/b", Mode: 0o600, Size: 2},
			{Name: "within", Typeflag: tar.TypeSymlink, Linkname: "/conf"}, {Name: "out", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
			{Name: "up", Typeflag: tar.TypeSymlink, Linkname: "../../../../../../../../etc"}},
	} {
		tw := tar.NewWriter(&layers[i])
		for _, h := range files {
			if err := tw.WriteHeader(&h); err != nil {
				n.t.Fatal(err)
			}
			if _, err := tw.Write([]byte("v\n")[:h.Size]); err != nil {
				n.t.Fatal(err)
			}
		}
		if err := tw.Close(); err != nil {
			n.t.Fatal(err)
		}
	}
	lower, err := images.TarLayer(layers[0].Bytes(), images.Gzip)
	if err != nil {
		n.t.Fatal(err)
	}
	upper, err := images.TarLayer(layers[1].Bytes(), images.Gzip)
	if err != nil {
		n.t.Fatal(err)
	}
	img, err := images.OCI(lower, upper)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := harness.Registry(n.t).Push(n.context(), strings.TrimPrefix(dataImage, images.Hosts[0]+"/"), img); err != nil {
		n.t.Fatal(err)
	}
	return n.pull(dataImage)
}

// volume mounts a part of an image as the kubelet does.
func volume(at, image, subPath string, options ...string) *runtimeapi.Mount {
	return &runtimeapi.Mount{ContainerPath: at, Image: &runtimeapi.ImageSpec{Image: image}, ImageSubPath: subPath, Readonly: true, MountOptions: options}
}

func mounts(list ...*runtimeapi.Mount) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { c.Mounts = list }
}

func TestImageVolume(t *testing.T) {
	n := newNode(t)
	id := n.pullData()
	p := n.runPod("pod")
	c := p.run("c", forever, mounts(
		volume("/all", dataImage, ""), volume("/part", id, "conf"), volume("/file", id, "conf/a"), volume("/linked", id, "within"),
		volume("/noexec", id, "", "noexec", "nosuid"), &runtimeapi.Mount{ContainerPath: "/writable", Image: &runtimeapi.ImageSpec{Image: id}},
		&runtimeapi.Mount{ContainerPath: "/slave", Image: &runtimeapi.ImageSpec{Image: id}, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
	))
	for path, want := range map[string]string{"/all": "conf out tool up within", "/part": "a b", "/linked": "a b", "/writable": "conf out tool up within", "/slave/conf": "a b"} {
		if got := strings.Join(strings.Fields(c.exec("ls", path)), " "); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if got := c.exec("cat", "/file"); got != "v\n" {
		t.Errorf("a file: %q", got)
	}
	for _, path := range []string{"/all/x", "/part/a", "/file", "/writable/x"} {
		if resp, err := c.execSync(30, "sh", "-c", "echo x > "+path); err != nil || resp.GetExitCode() == 0 || !strings.Contains(string(resp.GetStderr()), "Read-only") {
			t.Errorf("writing %s: %v, %v", path, resp, err)
		}
	}
	if line := c.exec("grep", " /noexec ", "/proc/mounts"); !strings.Contains(line, "ro,nosuid,noexec") && !strings.Contains(line, "ro,noexec,nosuid") {
		t.Errorf("mounted as %s", line)
	}
	if resp, err := c.execSync(30, "sh", "-c", "/noexec/tool"); err != nil || resp.GetExitCode() != 126 {
		t.Errorf("executed: %v, %v", resp, err)
	}

	for _, m := range c.status().GetMounts() {
		if m.GetImage().GetImage() != id || m.GetImage().GetImageRef() != n.image(dataImage).GetRepoDigests()[0] || m.GetHostPath() != "" {
			t.Errorf("status: %v, want the image's id %s", m, id)
		}
	}
	i := slices.IndexFunc(c.status().GetMounts(), func(m *runtimeapi.Mount) bool { return m.GetContainerPath() == "/part" })
	if i < 0 || c.status().GetMounts()[i].GetImageSubPath() != "conf" {
		t.Errorf("status: %v", c.status().GetMounts())
	}

	// Neither the image's removal nor the daemon's end takes anything away.
	other := n.runPod("other").run("c", forever, mounts(volume("/all", id, "")))
	n.removeImage(dataImage)
	for what, end := range map[string]func() error{"stopped": n.Stop, "killed": n.Kill} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if err := n.StartDaemon(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := c.exec("cat", "/all/conf/a", "/part/b", "/file"); got != "v\nv\nv\n" {
			t.Errorf("after the daemon was %s: %q", what, got)
		}
	}
	c.remove()
	if got := other.exec("cat", "/all/conf/a"); got != "v\n" {
		t.Errorf("after the other container has gone: %q", got)
	}
	if _, err := p.tryCreate(p.containerConfig("late", forever, mounts(volume("/all", id, "")))); err == nil {
		t.Error("a removed image was mounted")
	}
}

func TestImageVolumeRefused(t *testing.T) {
	n := newNode(t)
	id := n.pullData()
	p := n.runPod("pod")
	for name, c := range map[string]struct {
		mount *runtimeapi.Mount
		code  codes.Code
		names string
	}{
		"unknown":      {volume("/v", "registry.k8s.io/gantry/unknown:1", ""), codes.FailedPrecondition, "gantry/unknown:1"},
		"nameless":     {volume("/v", "", ""), codes.InvalidArgument, "names no image"},
		"missing":      {volume("/v", id, "conf/missing"), codes.InvalidArgument, "conf/missing"},
		"whited-out":   {volume("/v", id, "conf/gone"), codes.InvalidArgument, "conf/gone"},
		"absolute":     {volume("/v", id, "/conf"), codes.InvalidArgument, "/conf"},
		"dotdot":       {volume("/v", id, "conf/../conf"), codes.InvalidArgument, "conf/../conf"},
		"link out":     {volume("/v", id, "out"), codes.InvalidArgument, "out"},
		"link up":      {volume("/v", id, "up"), codes.InvalidArgument, "up"},
		"through file": {volume("/v", id, "tool/x"), codes.InvalidArgument, "tool/x"},
	} {
		_, err := p.tryCreate(p.containerConfig("c", forever, mounts(volume("/first", id, ""), c.mount)))
		wantError(t, err, c.code, c.names, "mounts[1].image")
		if !strings.HasPrefix(status.Convert(err).Message(), "ImageVolumeMountFailed: ") {
			t.Errorf("%s: the message does not begin as the kubelet wants it: %v", name, err)
		}
	}
	for name, m := range map[string]*runtimeapi.Mount{
		"host_path too": {ContainerPath: "/v", HostPath: "/tmp", Image: &runtimeapi.ImageSpec{Image: id}},
		"option":        volume("/v", id, "", "dev"),
		"bidirectional": {ContainerPath: "/v", Image: &runtimeapi.ImageSpec{Image: id}, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
	} {
		if _, err := p.tryCreate(p.containerConfig("c", forever, mounts(m))); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, code := p.output("c", "cat /v/a", mounts(volume("/v", id, "conf"))); got != "v\n" || code != 0 {
		t.Errorf("after the refusals: %q, %d", got, code)
	}
}

// The daemon is killed at moments that are spread over the making of a container with volumes; the request is
// repeated until it is answered. Making one takes 2 to 3 ms. What was mounted for the first tries is gone in the end: the audit sees to that.
func TestKilledMountingVolumes(t *testing.T) {
	const kills = 20
	n := newNode(t)
	volumes := []*runtimeapi.Mount{volume("/0", n.pullData(), "")}
	for i, ref := range []string{images.Demo, images.Web, images.Users, images.Busybox} {
		volumes = append(volumes, volume(fmt.Sprint("/", i+1), n.pull(ref), ""))
	}
	p := n.runPod("pod")
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for i := range kills {
		name := fmt.Sprint("c", i)
		created := make(chan error, 1)
		cc := p.containerConfig(name, forever, mounts(volumes...))
		go func() {
			created <- n.repeat(func(ctx context.Context) error {
				_, err := n.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: cc, SandboxConfig: p.config})
				return err
			})
		}()
		time.Sleep(time.Duration(random.IntN(5000)) * time.Microsecond)
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := n.StartDaemon(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := <-created; err != nil {
			t.Fatal(err)
		}
	}
	list, err := n.Runtime.ListContainers(n.context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.GetContainers()) != kills {
		t.Fatalf("%d containers, want %d: %v", len(list.GetContainers()), kills, err)
	}
	for _, l := range list.GetContainers() {
		c := &container{pod: p, id: l.GetId(), name: l.GetMetadata().GetName()}
		c.start()
		if got := c.exec("cat", "/0/conf/a"); got != "v\n" {
			t.Errorf("%s: %q", c.name, got)
		}
		c.remove()
	}
}

// Mounts pass between a container and the host as far as each mount says, though nothing that is mounted below a root
// file system or an image volume passes anywhere.
func TestMountPropagation(t *testing.T) {
	n := newNode(t)
	shared := filepath.Join(n.Dir, "logs", "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("shared", shared, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(shared, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", shared, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"host", "container"} {
		if err := os.Mkdir(filepath.Join(shared, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := n.runPod("pod", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	with := func(name string, propagation runtimeapi.MountPropagation) *container {
		return p.run(name, forever, mounts(&runtimeapi.Mount{HostPath: shared, ContainerPath: "/shared", Propagation: propagation}),
			security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }))
	}
	both := with("both", runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL)
	slave := with("slave", runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER)
	private := with("private", runtimeapi.MountPropagation_PROPAGATION_PRIVATE)

	if err := unix.Mount("host", filepath.Join(shared, "host"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	both.exec("mount", "-t", "tmpfs", "container", "/shared/container")
	seen := func(table string) string {
		var list []string
		for line := range strings.Lines(table) {
			if f := strings.Fields(line); len(f) > 0 && (f[0] == "host" || f[0] == "container") {
				list = append(list, f[0])
			}
		}
		return strings.Join(list, " ")
	}
	own, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for who, c := range map[string]struct{ got, want string }{
		"the host":          {seen(string(own)), "host container"},
		"BIDIRECTIONAL":     {seen(both.exec("cat", "/proc/mounts")), "host container"},
		"HOST_TO_CONTAINER": {seen(slave.exec("cat", "/proc/mounts")), "host container"},
		"PRIVATE":           {seen(private.exec("cat", "/proc/mounts")), ""},
	} {
		if c.got != c.want {
			t.Errorf("%s sees %q, want %q", who, c.got, c.want)
		}
	}
	// What is mounted in the root file system stays there.
	both.exec("sh", "-c", "mkdir /own && mount -t tmpfs container /own")
	if after, err := os.ReadFile("/proc/self/mounts"); err != nil || seen(string(after)) != seen(string(own)) {
		t.Errorf("the host sees %q now, %v", seen(string(after)), err)
	}
	_ = both.exec("umount", "/shared/container")
}
