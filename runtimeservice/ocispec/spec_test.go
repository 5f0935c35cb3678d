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

func TestRecursiveReadOnlyUnsupported(t *testing.T) {
	n, p, c := testNode(), testPod(), testContainer()
	n.RecursiveReadOnly = false
	m := &runtimeapi.Mount{ContainerPath: "/a", HostPath: "/h", Readonly: true, RecursiveReadOnly: true}
	c.Config.Mounts, c.Mounts = []*runtimeapi.Mount{m}, []Mount{{CRI: m, Source: "/h"}}
	if _, _, err := Build(n, p, c); err == nil || !strings.HasPrefix(err.Error(), "RROUnsupported") {
		t.Errorf("error %v", err)
	}
}

func TestNothingSet(t *testing.T) {
	p := Pod{Config: &runtimeapi.PodSandboxConfig{}, NetNS: "/n", IPCNS: "/i", UTSNS: "/u", PIDNS: "/p"}
	c := Container{Config: &runtimeapi.ContainerConfig{Command: []string{"x"}}, Rootfs: "/r", CgroupsPath: "/a/b", User: User{Groups: []uint32{0}}}
	if _, _, err := Build(Node{}, p, c); err != nil {
		t.Errorf("an empty request: %v", err)
	}
}

func TestArgs(t *testing.T) {
	both := imagespec.ImageConfig{Entrypoint: []string{"e", "1"}, Cmd: []string{"c"}}
	for _, tc := range []struct {
		command, args []string
		image         imagespec.ImageConfig
		want          []string
	}{
		{nil, nil, both, []string{"e", "1", "c"}},
		{nil, []string{"a"}, both, []string{"e", "1", "a"}},
		{[]string{"x"}, nil, both, []string{"x"}},
		{[]string{"x"}, []string{"a"}, both, []string{"x", "a"}},
		{nil, nil, imagespec.ImageConfig{Cmd: []string{"c"}}, []string{"c"}},
		{nil, []string{"a"}, imagespec.ImageConfig{Cmd: []string{"c"}}, []string{"a"}},
		{nil, []string{""}, imagespec.ImageConfig{Entrypoint: []string{"e"}}, []string{"e", ""}},
	} {
		got, err := args(&runtimeapi.ContainerConfig{Command: tc.command, Args: tc.args}, tc.image)
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("command %q, args %q: %q, %v; want %q", tc.command, tc.args, got, err, tc.want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	kv := func(s ...string) (list []*runtimeapi.KeyValue) {
		for i := 0; i < len(s); i += 2 {
			list = append(list, &runtimeapi.KeyValue{Key: s[i], Value: []byte(s[i+1])})
		}
		return list
	}
	for _, tc := range []struct {
		name     string
		image    []string
		envs     []*runtimeapi.KeyValue
		tty      bool
		want     []string
		warnings int
	}{
		{"nothing", nil, nil, false, []string{defaultPath, "HOSTNAME=web-0"}, 0},
		{"order and override", []string{"PATH=/p", "A=1", "B=2"}, kv("B", "x", "C", "3", "A", ""), false, []string{"PATH=/p", "A=", "B=x", "HOSTNAME=web-0", "C=3"}, 0},
		{"values are kept whole", []string{"A=x=y"}, kv("PATH", "", "M", "a\nb", "U", "ä€"), false, []string{"A=x=y", "PATH=", "HOSTNAME=web-0", "M=a\nb", "U=ä€"}, 0},
		{"duplicates", []string{"A=1", "A=2"}, kv("E", "1", "E", "2"), false, []string{"A=2", defaultPath, "HOSTNAME=web-0", "E=2"}, 0},
		{"tty", nil, nil, true, []string{defaultPath, "TERM=xterm", "HOSTNAME=web-0"}, 0},
		{"tty with own TERM", []string{"TERM=dumb"}, nil, true, []string{"TERM=dumb", defaultPath, "HOSTNAME=web-0"}, 0},
		{"HOSTNAME of the image is another host's", []string{"HOSTNAME=build"}, nil, false, []string{"HOSTNAME=web-0", defaultPath}, 0},
		{"HOSTNAME of the request", nil, kv("HOSTNAME", "mine"), false, []string{defaultPath, "HOSTNAME=mine"}, 0},
		{"CVE-2026-57231", []string{"PATH", "*", "A*", "=x", ""}, nil, false, []string{defaultPath, "HOSTNAME=web-0"}, 5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := testContainer()
			c.Image.Env, c.Config.Envs, c.Config.Tty = tc.image, tc.envs, tc.tty
			got, warnings, err := environment(testPod(), c)
			if err != nil || !slices.Equal(got, tc.want) || len(warnings) != tc.warnings {
				t.Errorf("got %q, warnings %q, error %v; want %q", got, warnings, err, tc.want)
			}
		})
	}
}

func TestWorkingDir(t *testing.T) {
	for _, tc := range [][3]string{{"", "", "/"}, {"", "/img", "/img"}, {"/cfg", "/img", "/cfg"}, {"//a/./b//", "", "/a/b"}, {"/proc", "", "/proc"}, {"/procs/x", "", "/procs/x"}} {
		got, err := workingDir(&runtimeapi.ContainerConfig{WorkingDir: tc[0]}, imagespec.ImageConfig{WorkingDir: tc[1]})
		if err != nil || got != tc[2] {
			t.Errorf("%q, %q: %q, %v", tc[0], tc[1], got, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	all := func(but ...string) (list []string) {
		for _, c := range knownCapabilities {
			if !slices.Contains(but, c) {
				list = append(list, c)
			}
		}
		return list
	}
	defaults := func(but ...string) (list []string) {
		for _, c := range knownCapabilities {
			if slices.Contains(defaultCapabilities, c) && !slices.Contains(but, c) {
				list = append(list, c)
			}
		}
		return list
	}
	for _, tc := range []struct {
		name      string
		add, drop []string
		priv      bool
		node      []string
		want      []string
	}{
		{name: "default", want: defaults()},
		{name: "any case and with or without prefix", drop: []string{"net_raw", "Cap_Mknod"}, want: defaults("CAP_NET_RAW", "CAP_MKNOD")},
		{name: "drop all, add some", drop: []string{"ALL"}, add: []string{"CAP_CHOWN", "net_admin"}, want: []string{"CAP_CHOWN", "CAP_NET_ADMIN"}},
		{name: "drop all", drop: []string{"all"}},
		{name: "add all", add: []string{"ALL"}, want: all()},
		{name: "add all, drop one", add: []string{"ALL"}, drop: []string{"SYS_ADMIN"}, want: all("CAP_SYS_ADMIN")},
		{name: "drop wins over add", add: []string{"SYS_TIME"}, drop: []string{"SYS_TIME"}, want: defaults()},
		{name: "drop all wins over add all", add: []string{"ALL"}, drop: []string{"ALL"}},
		{name: "privileged", priv: true, drop: []string{"ALL"}, want: all()},
		{name: "privileged on a poor node", priv: true, node: []string{"CAP_CHOWN", "CAP_BPF"}, want: []string{"CAP_CHOWN", "CAP_BPF"}},
		{name: "default on a poor node", node: []string{"CAP_CHOWN", "CAP_BPF"}, want: []string{"CAP_CHOWN"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := capabilities(Node{Capabilities: tc.node}, &runtimeapi.LinuxContainerSecurityContext{
				Privileged: tc.priv, Capabilities: &runtimeapi.Capability{AddCapabilities: tc.add, DropCapabilities: tc.drop},
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, set := range [][]string{got.Bounding, got.Effective, got.Permitted} {
				if !slices.Equal(set, tc.want) {
					t.Errorf("got %q, want %q", set, tc.want)
				}
			}
			if len(got.Inheritable)+len(got.Ambient) > 0 { // GHSA-c9cp-9c75-9v8c
				t.Errorf("inheritable %q, ambient %q", got.Inheritable, got.Ambient)
			}
		})
	}
}

// TestAmbientCapabilities: what is ambient is permitted and inheritable, and nothing else is inheritable.
func TestAmbientCapabilities(t *testing.T) {
	for _, tc := range []struct {
		ask     *runtimeapi.Capability
		priv    bool
		set     []string // bounding, permitted and effective
		ambient []string
	}{
		{ask: &runtimeapi.Capability{AddAmbientCapabilities: []string{"net_bind_service"}, DropCapabilities: []string{"ALL"}},
			set: []string{"CAP_NET_BIND_SERVICE"}, ambient: []string{"CAP_NET_BIND_SERVICE"}},
		{ask: &runtimeapi.Capability{AddAmbientCapabilities: []string{"SYS_TIME"}, AddCapabilities: []string{"CHOWN"}, DropCapabilities: []string{"ALL"}},
			set: []string{"CAP_CHOWN", "CAP_SYS_TIME"}, ambient: []string{"CAP_SYS_TIME"}},
		{ask: &runtimeapi.Capability{AddAmbientCapabilities: []string{"ALL"}, AddCapabilities: []string{"CHOWN"}, DropCapabilities: []string{"ALL"}},
			set: []string{"CAP_CHOWN"}, ambient: []string{"CAP_CHOWN"}},
		{ask: &runtimeapi.Capability{AddAmbientCapabilities: []string{"KILL"}, DropCapabilities: []string{"KILL"}}, priv: true,
			set: knownCapabilities, ambient: []string{"CAP_KILL"}},
	} {
		got, err := capabilities(Node{}, &runtimeapi.LinuxContainerSecurityContext{Privileged: tc.priv, Capabilities: tc.ask})
		if err != nil {
			t.Fatal(err)
		}
		for _, set := range [][]string{got.Bounding, got.Effective, got.Permitted} {
			if !slices.Equal(set, tc.set) {
				t.Errorf("%v: got %q, want %q", tc.ask, set, tc.set)
			}
		}
		if !slices.Equal(got.Ambient, tc.ambient) || !slices.Equal(got.Inheritable, tc.ambient) {
			t.Errorf("%v: ambient %q, inheritable %q; want both %q", tc.ask, got.Ambient, got.Inheritable, tc.ambient)
		}
	}
}

func TestMaskedPaths(t *testing.T) {
	_, p, c := testNode(), testPod(), testContainer()
	security(c).MaskedPaths = []string{"/bin/ls", "/proc/kcore/"}
	spec, _, err := Build(testNode(), p, c)
	if err != nil {
		t.Fatal(err)
	}
	got := spec.Linux.MaskedPaths
	if got[0] != "/bin/ls" || !slices.Contains(got, "/proc/interrupts") || !slices.Contains(got, "/sys/devices/virtual/powercap") || len(got) != len(maskedPaths)+1 {
		t.Errorf("masked: %q", got)
	}
	if spec.Linux.ReadonlyPaths != nil { // procMount: Unmasked for this list
		t.Errorf("read-only although none was asked for: %q", spec.Linux.ReadonlyPaths)
	}
}

func TestSeccomp(t *testing.T) {
	with := func(change func(*Container)) *specs.LinuxSeccomp {
		t.Helper()
		c := testContainer()
		change(&c)
		spec, _, err := Build(testNode(), testPod(), c)
		if err != nil {
			t.Fatal(err)
		}
		return spec.Linux.Seccomp
	}
	allows := func(s *specs.LinuxSeccomp, call string) bool {
		return slices.ContainsFunc(s.Syscalls, func(r specs.LinuxSyscall) bool {
			return r.Action == specs.ActAllow && len(r.Args) == 0 && slices.Contains(r.Names, call)
		})
	}
	if s := with(func(*Container) {}); s != nil {
		t.Errorf("no profile asked for: %v", s)
	}
	def := with(func(c *Container) { security(*c).Seccomp = runtimeDefault })
	if def.DefaultAction != specs.ActErrno || !allows(def, "read") || allows(def, "mount") || allows(def, "io_uring_setup") || allows(def, "socket") {
		t.Error("the default profile is not what it should be")
	}
	admin := with(func(c *Container) {
		security(*c).SeccompProfilePath = "runtime/default"
		security(*c).Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	})
	if !allows(admin, "mount") {
		t.Error("the default profile does not follow the capabilities")
	}
	local := with(func(c *Container) {
		security(*c).SeccompProfilePath = "localhost//var/lib/kubelet/seccomp/p.json"
		c.SeccompProfile = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname"],"action":"SCMP_ACT_ERRNO"}]}`)
	})
	if local.DefaultAction != specs.ActAllow || len(local.Syscalls) != 1 {
		t.Errorf("localhost profile: %+v", local)
	}
}

func TestSeccompPath(t *testing.T) {
	local := func(ref string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
	}
	for _, tc := range []struct {
		sc   *runtimeapi.LinuxContainerSecurityContext
		want string
		fail bool
	}{
		{sc: nil},
		{sc: &runtimeapi.LinuxContainerSecurityContext{Seccomp: runtimeDefault}},
		{sc: &runtimeapi.LinuxContainerSecurityContext{Seccomp: local("/a//b")}, want: "/a/b"},
		{sc: &runtimeapi.LinuxContainerSecurityContext{Seccomp: local("/a"), SeccompProfilePath: "localhost//a"}, want: "/a"},
		{sc: &runtimeapi.LinuxContainerSecurityContext{Seccomp: local("/a"), Privileged: true}},
		{sc: &runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "localhost/b.json"}, want: "/root/b.json"},
		{sc: &runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "localhost/../b.json"}, fail: true},
		{sc: &runtimeapi.LinuxContainerSecurityContext{Seccomp: local("b.json")}, fail: true},
	} {
		got, err := SeccompPath(Node{SeccompRoot: "/root"}, tc.sc)
		if got != tc.want || (err != nil) != tc.fail {
			t.Errorf("%v: %q, %v; want %q", tc.sc, got, err, tc.want)
		}
	}
}

func TestAppArmor(t *testing.T) {
	sc := func(p *runtimeapi.SecurityProfile) *runtimeapi.LinuxContainerSecurityContext {
		return &runtimeapi.LinuxContainerSecurityContext{Apparmor: p}
	}
	loaded := Node{AppArmor: true, AppArmorProfile: "gantry-default"}
	for _, tc := range []struct {
		n    Node
		sc   *runtimeapi.LinuxContainerSecurityContext
		want string
	}{
		{Node{}, sc(nil), ""},
		{Node{}, sc(runtimeDefault), ""},
		{Node{AppArmor: true}, sc(nil), ""},
		{loaded, sc(nil), "gantry-default"},
		{loaded, sc(runtimeDefault), "gantry-default"},
		{loaded, sc(&runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}), ""},
		{loaded, sc(&runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "p"}), "p"},
		{loaded, &runtimeapi.LinuxContainerSecurityContext{Privileged: true, Apparmor: runtimeDefault}, ""},
		{loaded, &runtimeapi.LinuxContainerSecurityContext{Privileged: true}, ""},
		{loaded, &runtimeapi.LinuxContainerSecurityContext{Privileged: true, ApparmorProfile: "localhost/p"}, "p"},
		{loaded, &runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "runtime/default", Apparmor: runtimeDefault}, "gantry-default"},
		{loaded, &runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "unconfined"}, ""},
		{loaded, &runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "localhost/old", Apparmor: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "localhost/p"}}, "p"},
	} {
		if got, err := AppArmorProfile(tc.n, tc.sc); err != nil || got != tc.want {
			t.Errorf("%+v, %v: %q, %v; want %q", tc.n, tc.sc, got, err, tc.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	n, p, c := testNode(), testPod(), testContainer()
	n.Hugetlb = false
	security(c).SelinuxOptions = &runtimeapi.SELinuxOption{Type: "t"}
	c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}, {PageSize: "1GB"}}}
	spec, warnings, err := Build(n, p, c)
	if err != nil || len(warnings) != 2 || len(spec.Linux.Resources.HugepageLimits) != 0 {
		t.Errorf("warnings %q, error %v", warnings, err)
	}
}

// Labels are those that the caller has made, of the container's processes and of what the OCI runtime mounts, and the
// pod's own for its init.
func TestSELinux(t *testing.T) {
	n, p, c := testNode(), testPod(), testContainer()
	n.SELinux = true
	p.ProcessLabel, p.MountLabel, c.ProcessLabel, c.MountLabel = "u:r:pod_t", "u:object_r:pod_file_t", "u:r:t:s0", "u:object_r:f:s0"
	security(c).SelinuxOptions = &runtimeapi.SELinuxOption{Type: "t"}
	spec, warnings, err := Build(n, p, c)
	if err != nil || len(warnings) != 0 || spec.Process.SelinuxLabel != c.ProcessLabel || spec.Linux.MountLabel != c.MountLabel {
		t.Errorf("labels %q and %q, warnings %q, %v", spec.Process.SelinuxLabel, spec.Linux.MountLabel, warnings, err)
	}
	if exec := BuildExec(spec, []string{"true"}, false); exec.SelinuxLabel != c.ProcessLabel {
		t.Errorf("an exec has the label %q", exec.SelinuxLabel)
	}
	init, err := BuildPodInit(n, p, "/init", "/pods/init")
	if err != nil || init.Process.SelinuxLabel != p.ProcessLabel || init.Linux.MountLabel != p.MountLabel {
		t.Errorf("the pod's init has %+v, %v", init, err)
	}
}

// A privileged container has no seccomp filter, and one that was asked for by name is not dropped in silence.
func TestPrivilegedSeccompWarning(t *testing.T) {
	p, c := testPod(), testContainer()
	p.Config.Linux.SecurityContext.Privileged, security(c).Privileged = true, true
	security(c).Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/p.json"}
	spec, warnings, err := Build(testNode(), p, c)
	if err != nil || spec.Linux.Seccomp != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "/p.json") {
		t.Errorf("seccomp %v, warnings %q, error %v", spec.Linux.Seccomp, warnings, err)
	}
}

// TestHostTrees is what drivers do: they mount the host's /dev, /sys and
// /proc over those of the runtime.
func TestHostTrees(t *testing.T) {
	n, p, c := testNode(), testPod(), testContainer()
	for _, dir := range []string{"/dev", "/sys", "/proc"} {
		m := &runtimeapi.Mount{ContainerPath: dir, HostPath: dir}
		c.Config.Mounts, c.Mounts = append(c.Config.Mounts, m), append(c.Mounts, Mount{CRI: m, Source: dir})
	}
	c.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "c"}, {Path: "/data/y", Type: "c"}}
	spec, _, err := Build(n, p, c)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range spec.Mounts {
		if strings.HasPrefix(m.Destination, "/dev/") || m.Destination == "/sys" && m.Type != "bind" {
			t.Errorf("mount %+v beside one of the request", m)
		}
	}
	if len(spec.Linux.Devices) != 1 || spec.Linux.Devices[0].Path != "/data/y" {
		t.Errorf("devices %+v: one would be made in the host's /dev", spec.Linux.Devices)
	}
	if _, i := mountAt(spec, "/proc"); i < 0 {
		t.Error("no /proc")
	}
}

func TestDeviceLastCounts(t *testing.T) {
	n, p, c := testNode(), testPod(), testContainer()
	c.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "c", Major: 1}, {Path: "/dev/y", Type: "c"}, {Path: "/dev/x", Type: "c", Major: 2}}
	spec, _, err := Build(n, p, c)
	if err != nil || len(spec.Linux.Devices) != 2 || spec.Linux.Devices[0].Major != 2 {
		t.Errorf("%+v, %v", spec, err)
	}
}

// TestInvariants breaks a good spec in each way that checkSpec knows.
func TestInvariants(t *testing.T) {
	for i, spoil := range []func(*specs.Spec){
		func(s *specs.Spec) { s.Process.Args = nil },
		func(s *specs.Spec) { s.Process.Cwd = "/proc/self/fd/3" },
		func(s *specs.Spec) { s.Process.Cwd = "/a/.." },
		func(s *specs.Spec) { s.Process.User.UID = 1 << 31 },
		func(s *specs.Spec) { s.Process.User.AdditionalGids = nil },
		func(s *specs.Spec) { s.Process.Capabilities.Inheritable = []string{"CAP_CHOWN"} },
		func(s *specs.Spec) { s.Process.Capabilities.Ambient = []string{"CAP_CHOWN"} },
		func(s *specs.Spec) {
			s.Process.Capabilities.Inheritable, s.Process.Capabilities.Ambient = []string{"CAP_CHOWN"}, []string{"CAP_CHOWN"}
		},
		func(s *specs.Spec) { s.Process.OOMScoreAdj = nil },
		func(s *specs.Spec) { s.Process.Rlimits = nil },
		func(s *specs.Spec) { s.Root.Path = "rootfs" },
		func(s *specs.Spec) { s.Root.Path = "/" },
		func(s *specs.Spec) { s.Hooks = &specs.Hooks{} },
		func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/h"}}} },
		func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "h", Env: []string{"PATH=/bin"}}}}
		},
		func(s *specs.Spec) { s.Annotations = map[string]string{"a": "b"} },
		func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"a": "b"} },
		func(s *specs.Spec) { s.Linux.CgroupsPath = "a:b:c" },
		func(s *specs.Spec) { s.Linux.CgroupsPath = "/x" },
		func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] },
		func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, s.Linux.Namespaces[1]) },
		func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
		},
		func(s *specs.Spec) { s.Mounts = s.Mounts[1:] },
		func(s *specs.Spec) { s.Mounts[1].Destination = "/dev2" },
		func(s *specs.Spec) { s.Mounts[2].Options = nil },
		func(s *specs.Spec) { s.Mounts[4].Options = []string{"rw"} },
		func(s *specs.Spec) { s.Mounts[5].Options = []string{"rw"} },
		func(s *specs.Spec) { s.Linux.Resources.Devices = s.Linux.Resources.Devices[1:] },
		func(s *specs.Spec) {
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"})
		},
	} {
		spec, _, err := Build(testNode(), testPod(), testContainer())
		if err != nil {
			t.Fatal(err)
		}
		if spoil(spec); checkContainerSpec(testNode(), spec, nil) == nil {
			t.Errorf("breach %d is not found", i)
		}
	}
}

func TestValidatePod(t *testing.T) {
	pod := func(sc *runtimeapi.LinuxSandboxSecurityContext) *runtimeapi.PodSandboxConfig {
		return &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: sc}}
	}
	local := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "p"}
	for _, tc := range []struct {
		sc   *runtimeapi.LinuxSandboxSecurityContext
		kind error
	}{
		{nil, nil},
		{&runtimeapi.LinuxSandboxSecurityContext{Seccomp: runtimeDefault, Apparmor: runtimeDefault, SeccompProfilePath: "runtime/default"}, nil},
		{&runtimeapi.LinuxSandboxSecurityContext{RunAsGroup: &runtimeapi.Int64Value{}}, errdefs.ErrInvalidArgument},
		{&runtimeapi.LinuxSandboxSecurityContext{RunAsUser: &runtimeapi.Int64Value{Value: -1}}, errdefs.ErrInvalidArgument},
		{&runtimeapi.LinuxSandboxSecurityContext{Apparmor: local}, errdefs.ErrFailedPrecondition},
		{&runtimeapi.LinuxSandboxSecurityContext{Seccomp: &runtimeapi.SecurityProfile{ProfileType: 8}}, errdefs.ErrInvalidArgument},
		{&runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{}}}, errdefs.ErrInvalidArgument},
	} {
		if _, err := ValidatePod(Node{}, pod(tc.sc)); !errors.Is(err, tc.kind) {
			t.Errorf("%v: %v, want %v", tc.sc, err, tc.kind)
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	n, p, c := testNode(), testPod(), testContainer()
	kubeletContainer(&n, &p, &c)
	for b.Loop() {
		if _, _, err := Build(n, p, c); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzMountTarget asserts that what is accepted is a clean path outside of
// what the runtime keeps for itself.
func FuzzMountTarget(f *testing.F) {
	for _, s := range []string{"/", "/a/../b", "/proc/self", "/dev/null", "/a//b/.", "a", "/\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := mountTarget(s)
		if err != nil {
			return
		}
		if got == "/" || got[0] != '/' || strings.Contains(got+"/", "/../") || strings.Contains(got, "//") || strings.ContainsRune(got, 0) ||
			strings.HasPrefix(got, "/proc/self") || got == "/dev/null" {
			t.Fatalf("%q became %q", s, got)
		}
	})
}
