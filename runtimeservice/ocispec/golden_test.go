package ocispec

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Understand every diff before you commit what -update has written.
var update = flag.Bool("update", false, "write the golden files in testdata anew")

// kubeletMasked and kubeletReadonly are what a kubelet sends for procMount: Default.
var (
	kubeletMasked = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	kubeletReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	runtimeDefault  = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
)

func golden(t *testing.T, name string, v any) {
	t.Helper()
	var got bytes.Buffer
	enc := json.NewEncoder(&got)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%s is not what was built (run with -update and look at the diff):\n%s", file, got.String())
	}
}

// shorten leaves out the system calls of a profile: they are the library's,
// depend on the architecture and would fill a thousand lines.
func shorten(s *specs.Spec) *specs.Spec {
	if s.Linux.Seccomp != nil {
		s.Linux.Seccomp.Architectures, s.Linux.Seccomp.Syscalls = nil, nil
	}
	return s
}

func TestGolden(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Node, *Pod, *Container)
	}{
		{"minimal", func(*Node, *Pod, *Container) {}},
		{"kubelet", kubeletContainer},
		{"privileged", func(_ *Node, p *Pod, c *Container) {
			p.Config.Linux.SecurityContext.Privileged = true
			sc := security(*c) // of which all that confines is to be ignored
			sc.Privileged, sc.Seccomp, sc.Apparmor = true, runtimeDefault, runtimeDefault
			sc.MaskedPaths, sc.ReadonlyPaths = kubeletMasked, kubeletReadonly
			sc.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
			c.AllDevices = true
			mode, uid, gid := os.FileMode(0o660), uint32(0), uint32(6)
			c.Devices = []specs.LinuxDevice{{Path: "/dev/sda", Type: "b", Major: 8, Minor: 0, FileMode: &mode, UID: &uid, GID: &gid}}
		}},
		{"hostnetwork", func(_ *Node, p *Pod, c *Container) {
			opts := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE}
			p.Config.Linux.SecurityContext.NamespaceOptions, security(*c).NamespaceOptions = opts, opts
			p.NetNS, p.UTSNS, p.IPCNS, p.ShmDir, p.Hostname = "", "", "", "/dev/shm", "node-1"
		}},
		{"tty", func(_ *Node, p *Pod, c *Container) {
			c.Config.Tty = true
			p.Config.Linux.SecurityContext.NamespaceOptions = nil // one PID namespace
			security(*c).NamespaceOptions = nil
			p.PIDNS = "/run/gantry/pods/p/ns/pid"
			security(*c).ReadonlyRootfs = true
		}},
		{"mounts", mountContainer},
		{"resources", func(_ *Node, _ *Pod, c *Container) {
			c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 128 << 20, MemorySwapLimitInBytes: 192 << 20,
				OomScoreAdj: 937, CpusetCpus: "0-2,7", CpusetMems: "0",
				HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}},
				Unified:        map[string]string{"memory.oom.group": "1", "memory.min": "4096"},
			}
		}},
		{"v1-systemd", func(n *Node, _ *Pod, c *Container) {
			n.Cgroup2, n.Systemd, n.SwapAccounting, n.Hugetlb, n.OCIVersion = false, true, false, false, ""
			n.MinOOMScoreAdj = 100
			c.CgroupsPath = "kubepods-pod1.slice:gantry:c"
			c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 30, OomScoreAdj: -997,
				HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, p, c := testNode(), testPod(), testContainer()
			tc.change(&n, &p, &c)
			spec, warnings, err := Build(n, p, c)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, tc.name, struct {
				Warnings []string
				Spec     *specs.Spec
			}{warnings, shorten(spec)})
		})
	}
}

// kubeletContainer is what a kubelet asks for a plain web server of a pod.
func kubeletContainer(_ *Node, _ *Pod, c *Container) {
	c.Config.Command, c.Config.Args, c.Config.WorkingDir = []string{"/web"}, []string{"-v"}, "/srv/"
	c.Config.Envs = []*runtimeapi.KeyValue{{Key: "KUBERNETES_PORT", Value: []byte("tcp://10.0.0.1:443")}, {Key: "LANG", Value: []byte("de=DE")}}
	c.Config.Labels = map[string]string{"io.kubernetes.container.name": "web"}
	c.Config.Annotations = map[string]string{"run.oci.hooks": "/x", "org.systemd.property.X": "1", "bundle": "/"}
	c.Image.Labels = map[string]string{"io.gantry": "x"}
	c.User = User{UID: 1000, GID: 1000, Groups: []uint32{1000, 2000}}
	sc := security(*c)
	sc.NoNewPrivs, sc.MaskedPaths, sc.ReadonlyPaths, sc.Seccomp = true, kubeletMasked, kubeletReadonly, runtimeDefault
	sc.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"ALL"}}
	c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 2, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 1000}
}

func mountContainer(_ *Node, _ *Pod, c *Container) {
	c.Config.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/var/lib/data/deep", HostPath: "/h/deep", MountOptions: []string{"noexec", "nosuid", "nodev"}},
		{ContainerPath: "/etc/hosts", HostPath: "/var/lib/kubelet/pods/1/etc-hosts"},
		{ContainerPath: "/var/lib/data", HostPath: "/h/link", Readonly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		{ContainerPath: "/csi/", HostPath: "/h/csi", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		{ContainerPath: "/model", Image: &runtimeapi.ImageSpec{Image: "sha256:1"}, ImageSubPath: "weights"},
		{ContainerPath: "/ro", HostPath: "/h/ro", Readonly: true, RecursiveReadOnly: true},
		{ContainerPath: "/dev/termination-log", HostPath: "/h/term"},
	}
	sources := []string{"/h/deep", "/var/lib/kubelet/pods/1/etc-hosts", "/h/target", "/h/csi", "/run/gantry/images/1/weights", "/h/ro", "/h/term"}
	for i, m := range c.Config.Mounts {
		c.Mounts = append(c.Mounts, Mount{CRI: m, Source: sources[i], Shared: m.ContainerPath == "/csi/", Slave: m.ContainerPath == "/var/lib/data"})
	}
	c.Image.Volumes = map[string]struct{}{"/cache": {}, "/ro": {}, "/var/lib/data/deep/": {}}
	c.Volumes = map[string]string{"/cache": "/var/lib/gantry/rootfs/cache"}
}

func TestGoldenPodInit(t *testing.T) {
	p := testPod()
	p.Config.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 65535}
	p.Config.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 65534}
	p.Config.Linux.SecurityContext.NamespaceOptions = nil
	spec, err := BuildPodInit(testNode(), p, "/run/gantry/podinit", "/kubepods/pod1/"+p.ID)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "podinit", shorten(spec))
}

func TestGoldenExec(t *testing.T) {
	n, p, c := testNode(), testPod(), testContainer()
	kubeletContainer(&n, &p, &c)
	spec, _, err := Build(n, p, c)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "exec", BuildExec(spec, []string{"ps", "-A"}, true))
	if spec.Process.Terminal || len(spec.Process.Env) == 0 || spec.Process.Args[0] != "/web" {
		t.Errorf("BuildExec has changed the container's process: %+v", spec.Process)
	}
	BuildExec(spec, []string{"x"}, false).Env[0] = "changed"
	if spec.Process.Env[0] == "changed" {
		t.Error("the result of BuildExec shares its environment with the container's process")
	}
}

// TestImageNotShared is the case of CVE-2021-21334: containers of one image
// are built at once and must not write into what they share.
func TestImageNotShared(t *testing.T) {
	image := imagespec.ImageConfig{Env: append(make([]string, 0, 100), "PATH=/bin"), Entrypoint: append(make([]string, 0, 100), "/bin/server")}
	done := make(chan []string)
	for i := range 50 {
		go func() {
			c := testContainer()
			c.Image = image
			name := string(rune('A' + i))
			c.Config.Envs = []*runtimeapi.KeyValue{{Key: "NAME", Value: []byte(name)}}
			c.Config.Args = []string{name}
			spec, _, err := Build(testNode(), testPod(), c)
			if err != nil {
				done <- nil
				return
			}
			done <- []string{"NAME=" + spec.Process.Args[1], spec.Process.Env[len(spec.Process.Env)-1]}
		}()
	}
	for range 50 {
		if got := <-done; len(got) != 2 || got[0] != got[1] {
			t.Errorf("environment of another container: %q", got)
		}
	}
}
