package ocispec

//lint:file-ignore SA1019 the deprecated fields are honoured, so they are tested

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestRefused holds every request that is refused, with the kind of the error
// and a word of the message that names the field.
func TestRefused(t *testing.T) {
	invalid, never := errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition
	ns := func(o *runtimeapi.NamespaceOption) func(*Node, *Pod, *Container) {
		return func(_ *Node, _ *Pod, c *Container) { security(*c).NamespaceOptions = o }
	}
	sc := func(f func(*runtimeapi.LinuxContainerSecurityContext)) func(*Node, *Pod, *Container) {
		return func(_ *Node, _ *Pod, c *Container) { f(security(*c)) }
	}
	mount := func(m *runtimeapi.Mount) func(*Node, *Pod, *Container) {
		return func(_ *Node, _ *Pod, c *Container) {
			if m.HostPath == "" && m.Image == nil {
				m.HostPath = "/h"
			}
			c.Config.Mounts, c.Mounts = []*runtimeapi.Mount{m}, []Mount{{CRI: m, Source: "/h"}}
		}
	}
	volume := func(v string) func(*Node, *Pod, *Container) {
		return func(_ *Node, _ *Pod, c *Container) {
			c.Image.Volumes, c.Volumes = map[string]struct{}{v: {}}, map[string]string{v: "/h"}
		}
	}
	env := func(k, v string) func(*Node, *Pod, *Container) {
		return func(_ *Node, _ *Pod, c *Container) {
			c.Config.Envs = []*runtimeapi.KeyValue{{Key: k, Value: []byte(v)}}
		}
	}
	cwd := func(dir string) func(*Node, *Pod, *Container) {
		return func(_ *Node, _ *Pod, c *Container) { c.Config.WorkingDir = dir }
	}
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
	seccomp := func(ref, data string) func(*Node, *Pod, *Container) {
		return func(_ *Node, _ *Pod, c *Container) {
			security(*c).Seccomp, c.SeccompProfile = profile(runtimeapi.SecurityProfile_Localhost, ref), []byte(data)
		}
	}
	device := func(p string) func(*Node, *Pod, *Container) {
		return func(_ *Node, _ *Pod, c *Container) { c.Devices = []specs.LinuxDevice{{Path: p, Type: "c"}} }
	}
	for _, tc := range []struct {
		name   string
		kind   error
		word   string
		change func(*Node, *Pod, *Container)
	}{
		{"no program", invalid, "command", func(_ *Node, _ *Pod, c *Container) { c.Image = imagespec.ImageConfig{} }},
		{"empty program", invalid, "empty", func(_ *Node, _ *Pod, c *Container) { c.Config.Command = []string{"", "x"} }},
		{"NUL in args", invalid, "NUL", func(_ *Node, _ *Pod, c *Container) { c.Config.Args = []string{"a\x00b"} }},
		{"huge arg", invalid, "execve", func(_ *Node, _ *Pod, c *Container) { c.Config.Args = []string{strings.Repeat("x", 128<<10)} }},
		{"huge Cmd of the image", invalid, "execve", func(_ *Node, _ *Pod, c *Container) {
			c.Image.Cmd = slices.Repeat([]string{strings.Repeat("x", 1000)}, 7000)
		}},
		{"NUL in the image's env", invalid, "the image's Env", func(_ *Node, _ *Pod, c *Container) { c.Image.Env = []string{"A=\x00"} }},
		{"env name", invalid, "envs", env("A=B", "x")},
		{"empty env name", invalid, "envs", env("", "x")},
		{"env not UTF-8", invalid, "UTF-8", env("A", "\xff")},
		{"relative working_dir", invalid, "absolute", cwd("a")},
		{"working_dir with ..", invalid, "working_dir", cwd("/a/../b")},
		{"CVE-2024-21626", invalid, "/proc", cwd("/proc/self/fd/7")},
		{"CVE-2024-21626", invalid, "/proc", cwd("//proc/./1/cwd")},
		{"CVE-2024-21626", invalid, "/proc", cwd("/dev/fd/7")},
		{"CVE-2024-21626, image", invalid, "WorkingDir", func(_ *Node, _ *Pod, c *Container) { c.Image.WorkingDir = "/proc/self/fd/7" }},
		{"oom_score_adj", invalid, "oom_score_adj", func(_ *Node, _ *Pod, c *Container) {
			c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 1001}
		}},

		{"privileged in a pod that is not", invalid, "privileged", sc(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })},
		{"network CONTAINER", invalid, "network", ns(&runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_CONTAINER, Pid: 1})},
		{"network NODE in a pod with its own", invalid, "network", ns(&runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: 1})},
		{"ipc TARGET", invalid, "ipc", ns(&runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_TARGET, Pid: 1})},
		{"ipc NODE in a pod with its own", invalid, "ipc", ns(&runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_NODE, Pid: 1})},
		{"pid POD in a pod that shares none", invalid, "pid", ns(&runtimeapi.NamespaceOption{})},
		{"pid NODE in a pod of its own", invalid, "pid", ns(&runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_NODE})},
		{"pid TARGET without a target", invalid, "target_id", ns(&runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: "x"})},
		{"unknown pid mode", invalid, "pid", ns(&runtimeapi.NamespaceOption{Pid: 9})},
		{"user namespace in a pod with the host's", invalid, "userns_options", ns(&runtimeapi.NamespaceOption{Pid: 1, UsernsOptions: &runtimeapi.UserNamespace{}})},
		{"user namespace CONTAINER", invalid, "userns_options", ns(&runtimeapi.NamespaceOption{Pid: 1, UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_CONTAINER}})},
		{"no user namespace in a pod that should have one", never, "userns_options", func(_ *Node, p *Pod, _ *Container) {
			p.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{}
		}},
		{"no network namespace in a pod that should have one", never, "network", func(_ *Node, p *Pod, _ *Container) { p.NetNS = "" }},
		{"no UTS namespace in a pod that should have one", never, "uts", func(_ *Node, p *Pod, _ *Container) { p.UTSNS = "" }},

		{"unknown ambient capability", invalid, "add_ambient_capabilities", sc(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"ROOT"}}
		})},
		{"ambient capability that is dropped", invalid, "add_ambient_capabilities: CAP_CHOWN", sc(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"CHOWN"}, DropCapabilities: []string{"CAP_CHOWN"}}
		})},
		{"unknown capability", invalid, "add_capabilities", sc(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"CAP_ROOT"}}
		})},
		{"unknown capability to drop", invalid, "drop_capabilities", sc(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{""}}
		})},
		{"capability that the node has not", never, "CAP_SYS_TIME", func(n *Node, _ *Pod, c *Container) {
			n.Capabilities = []string{"CAP_CHOWN"}
			security(*c).Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"sys_time"}}
		}},
		{"masked path", invalid, "masked_paths", sc(func(s *runtimeapi.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"/a/../b"} })},
		{"read-only path", invalid, "readonly_paths", sc(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"a"} })},
		{"CVE-2023-2431, seccomp", invalid, "localhost_ref", seccomp("", "{}")},
		{"seccomp not absolute", invalid, "seccomp.localhost_ref", seccomp("a.json", "{}")},
		{"seccomp ..", invalid, "seccomp.localhost_ref", seccomp("/a/../b", "{}")},
		{"seccomp no JSON", invalid, "seccomp", seccomp("/a", "x")},
		{"seccomp that allows all", invalid, "defaultAction", seccomp("/a", "{}")},
		{"seccomp action", invalid, "is no action", seccomp("/a", `{"defaultAction": "SCMP_ACT_X"}`)},
		{"seccomp action of a call", invalid, "is no action", seccomp("/a", `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_NOTIFY"}]}`)},
		{"seccomp without content", invalid, "seccomp", seccomp("/a", "")},
		{"seccomp type", invalid, "seccomp", sc(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Seccomp = profile(7, "") })},
		{"old seccomp", invalid, "seccomp_profile_path", sc(func(s *runtimeapi.LinuxContainerSecurityContext) { s.SeccompProfilePath = "localhost/" })},
		{"contradicting seccomp", invalid, "contradict", sc(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp, s.SeccompProfilePath = runtimeDefault, "unconfined"
		})},
		{"CVE-2023-2431, AppArmor", invalid, "localhost_ref", sc(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Apparmor = profile(runtimeapi.SecurityProfile_Localhost, "")
		})},
		{"AppArmor profile that is a prefix", invalid, "apparmor", func(n *Node, _ *Pod, c *Container) {
			n.AppArmor, security(*c).Apparmor = true, profile(runtimeapi.SecurityProfile_Localhost, "localhost/")
		}},
		{"AppArmor profile without AppArmor", never, "apparmor", sc(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ApparmorProfile = "localhost/p" })},
		{"AppArmor default that is not loaded", never, "apparmor", func(n *Node, _ *Pod, c *Container) {
			n.AppArmor, security(*c).Apparmor = true, runtimeDefault
		}},
		{"AppArmor name", invalid, "apparmor", func(n *Node, _ *Pod, c *Container) {
			n.AppArmor, security(*c).Apparmor = true, profile(runtimeapi.SecurityProfile_Localhost, "a\nb")
		}},
		{"CDI device that nobody looked up", errdefs.ErrFailedPrecondition, "CDI_devices", func(_ *Node, _ *Pod, c *Container) {
			c.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.com/gpu=0"}}
		}},
		{"CDI annotation", invalid, "cdi.k8s.io/x", func(_ *Node, _ *Pod, c *Container) {
			c.Config.Annotations = map[string]string{"cdi.k8s.io/x": "vendor.com/gpu=0,"}
		}},
		{"CDI device without a name", invalid, "CDI_devices[0]", func(_ *Node, _ *Pod, c *Container) {
			c.Config.CDIDevices = []*runtimeapi.CDIDevice{{}}
		}},

		{"mount at /", invalid, "root", mount(&runtimeapi.Mount{ContainerPath: "/./"})},
		{"relative mount", invalid, "container_path", mount(&runtimeapi.Mount{ContainerPath: "a"})},
		{"mount without target", invalid, "container_path", mount(&runtimeapi.Mount{})},
		{"mount with ..", invalid, "container_path", mount(&runtimeapi.Mount{ContainerPath: "/a/../../etc"})},
		{"mount in /proc", invalid, "/proc", mount(&runtimeapi.Mount{ContainerPath: "/proc/self/attr"})},
		{"mount of another thing at /proc", invalid, "/proc", mount(&runtimeapi.Mount{ContainerPath: "/proc"})},
		{"mount at /dev/null", invalid, "/dev/null", mount(&runtimeapi.Mount{ContainerPath: "/dev/null"})},
		{"mount in /dev/pts", invalid, "/dev/pts", mount(&runtimeapi.Mount{ContainerPath: "/dev/pts/0"})},
		{"long mount path", invalid, "4095", mount(&runtimeapi.Mount{ContainerPath: "/" + strings.Repeat("a", 5000)})},
		{"host_path and image", invalid, "host_path and image", mount(&runtimeapi.Mount{ContainerPath: "/a", HostPath: "/h", Image: &runtimeapi.ImageSpec{}})},
		{"image volume to the host", invalid, "PROPAGATION_BIDIRECTIONAL", mount(&runtimeapi.Mount{ContainerPath: "/a", Image: &runtimeapi.ImageSpec{}, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL})},
		{"sub path without image", invalid, "image_sub_path", mount(&runtimeapi.Mount{ContainerPath: "/a", ImageSubPath: "x"})},
		{"idmapped mount without a user namespace", invalid, "uidMappings", mount(&runtimeapi.Mount{ContainerPath: "/a", UidMappings: []*runtimeapi.IDMapping{{Length: 1}}})},
		{"mount option", invalid, "mount_options", mount(&runtimeapi.Mount{ContainerPath: "/a", MountOptions: []string{"suid"}})},
		{"propagation", invalid, "propagation", mount(&runtimeapi.Mount{ContainerPath: "/a", Propagation: 7})},
		{"rslave from a private mount", never, "shared or slave", mount(&runtimeapi.Mount{ContainerPath: "/a", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER})},
		{"rshared from a private mount", never, "BIDIRECTIONAL", mount(&runtimeapi.Mount{ContainerPath: "/a", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL})},
		{"recursive_read_only alone", invalid, "recursive_read_only", mount(&runtimeapi.Mount{ContainerPath: "/a", RecursiveReadOnly: true})},
		{"recursive_read_only and propagation", invalid, "recursive_read_only", mount(&runtimeapi.Mount{ContainerPath: "/a", Readonly: true, RecursiveReadOnly: true, Propagation: 1})},
		{"mount that was not prepared", never, "mounts", func(_ *Node, _ *Pod, c *Container) {
			c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/a", HostPath: "/h"}}
		}},
		{"source not clean", invalid, "source", func(_ *Node, _ *Pod, c *Container) {
			m := &runtimeapi.Mount{ContainerPath: "/a", HostPath: "/h"}
			c.Config.Mounts, c.Mounts = []*runtimeapi.Mount{m}, []Mount{{CRI: m, Source: "/h/../x"}}
		}},
		{"CVE-2019-16884", invalid, "Volumes", volume("/proc")},
		{"CVE-2019-16884", invalid, "Volumes", volume("/proc/self")},
		{"CVE-2019-16884", invalid, "Volumes", volume("/sys")},
		{"CVE-2019-16884", invalid, "Volumes", volume("/dev/shm")},
		{"volume /", invalid, "Volumes", volume("/")},
		{"CVE-2022-23648", invalid, "Volumes", volume("/../../etc")},
		{"relative volume", invalid, "Volumes", volume("data")},
		{"volume without directory", never, "/v", func(_ *Node, _ *Pod, c *Container) { c.Image.Volumes = map[string]struct{}{"/v": {}} }},
		{"device in /proc", invalid, "devices", device("/proc/x")},
		{"device /", invalid, "devices", device("/")},
		{"relative device", invalid, "devices", device("x")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, p, c := testNode(), testPod(), testContainer()
			tc.change(&n, &p, &c)
			spec, _, err := Build(n, p, c)
			if spec != nil || !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.word) {
				t.Fatalf("error %v; want %v with %q", err, tc.kind, tc.word)
			}
		})
	}
}
