package ocispec

import (
	"errors"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSecurityOfContexts: what a security context, or the user of an image, may not bring about.
func TestSecurityOfContexts(t *testing.T) {
	refused := func(t *testing.T, what string, err error) {
		t.Helper()
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v, want an invalid argument", what, err)
		}
	}
	user := func(image string) (User, error) {
		return ResolveUser(nil, image, []byte(testPasswd), []byte(testGroup))
	}
	users := func(t *testing.T, images ...string) {
		for _, image := range images {
			u, err := user(image)
			refused(t, image, err)
			if err == nil && u.UID == 0 {
				t.Errorf("%q is root", image)
			}
		}
	}
	t.Run("CVE-2024-40635", func(t *testing.T) {
		users(t, "2147483648", "4294967295", "4294967296", "-1", "1000:4294967296", "18446744073709551616", "1000:2147483648")
		for _, n := range []int64{-1, 1 << 31, 1<<32 - 1, 1 << 32, -1 << 63} {
			v := &runtimeapi.Int64Value{Value: n}
			for field, sc := range map[string]*runtimeapi.LinuxContainerSecurityContext{
				"run_as_user": {RunAsUser: v}, "run_as_group": {RunAsUser: &runtimeapi.Int64Value{}, RunAsGroup: v}, "supplemental_groups": {SupplementalGroups: []int64{n}},
			} {
				_, err := ResolveUser(sc, "", nil, nil)
				refused(t, field, err)
			}
		}
	})
	// The image's passwd has lines with these names, all of them root's.
	t.Run("CVE-2026-46680", func(t *testing.T) { users(t, "99999999999", "+0", "00", "0x0", " 0", "0x0:0", "+0:0") })
	t.Run("CVE-2026-46680-request", func(t *testing.T) {
		for _, name := range []string{"99999999999", "0x0", "00", "+0"} {
			_, err := ResolveUser(&runtimeapi.LinuxContainerSecurityContext{RunAsUsername: name}, "", []byte(testPasswd), nil)
			refused(t, name, err)
		}
	})
	t.Run("CVE-2016-3697", func(t *testing.T) { // a number is itself, though somebody is called so
		u, err := ResolveUser(nil, "1000", []byte("1000:x:0:0::/:\n"), nil)
		if err != nil || u.UID != 1000 || u.GID != 0 {
			t.Errorf("%+v, %v", u, err)
		}
	})
	t.Run("CVE-2023-25173", func(t *testing.T) {
		for _, policy := range []runtimeapi.SupplementalGroupsPolicy{runtimeapi.SupplementalGroupsPolicy_Merge, runtimeapi.SupplementalGroupsPolicy_Strict} {
			u, err := ResolveUser(&runtimeapi.LinuxContainerSecurityContext{RunAsUser: &runtimeapi.Int64Value{Value: 1000}, RunAsGroup: &runtimeapi.Int64Value{Value: 7},
				SupplementalGroups: []int64{9}, SupplementalGroupsPolicy: policy}, "", []byte(testPasswd), []byte(testGroup))
			if err != nil || len(u.Groups) < 2 || u.Groups[0] != 7 || !slices.Contains(u.Groups, 9) || slices.Contains(u.Groups, 50) != (policy == runtimeapi.SupplementalGroupsPolicy_Merge) {
				t.Errorf("%v: %+v, %v", policy, u, err)
			}
		}
	})

	sysctl := func(t *testing.T, name, value string, hostNet, hostIPC bool) {
		t.Helper()
		_, err := Sysctls(map[string]string{name: value}, hostNet, hostIPC)
		refused(t, name+"="+value, err)
	}
	t.Run("CVE-2022-0532", func(t *testing.T) {
		for _, name := range []string{"net.ipv4.ip_forward", "net/ipv4/ip_forward", "kernel.domainname"} {
			sysctl(t, name, "1", true, false)
		}
	})
	t.Run("GHSA-w2j5-3rcx-vx7x", func(t *testing.T) {
		for _, name := range []string{"kernel.shm_rmid_forced", "kernel/shmmax", "fs.mqueue.msg_max"} {
			sysctl(t, name, "1", false, true)
		}
	})
	t.Run("CVE-2022-0811", func(t *testing.T) {
		for _, value := range []string{"1024 65000+kernel.core_pattern=|/x", "1=2", "1\n2", "1\x00"} {
			sysctl(t, "net.ipv4.ip_local_port_range", value, false, false)
		}
	})
	t.Run("CVE-2022-0811-names", func(t *testing.T) {
		for _, name := range []string{"net.ipv4.x=1+kernel.core_pattern", "net.ipv4.x y", "net.ipv4.x\n", "net/../kernel/core_pattern", "net.ipv4.conf.a/../../../kernel/core_pattern", "net.", "/net/x"} {
			sysctl(t, name, "1", false, false)
		}
	})
	t.Run("2.6-sysctls-of-the-node", func(t *testing.T) {
		for _, name := range []string{"kernel.core_pattern", "kernel/core_pattern", "vm.swappiness", "fs.file-max", "kernel.hostname", "user.max_user_namespaces"} {
			sysctl(t, name, "1", false, false)
		}
	})

	t.Run("GHSA-c9cp-9c75-9v8c", func(t *testing.T) { // CVE-2018-1000400, CVE-2022-27652
		for _, caps := range []*runtimeapi.Capability{nil, {AddCapabilities: []string{"ALL"}}, {AddCapabilities: []string{"NET_ADMIN"}, AddAmbientCapabilities: []string{"CHOWN"}}} {
			c := testContainer()
			c.User.UID, security(c).Capabilities = 1000, caps
			spec, _, err := Build(testNode(), testPod(), c)
			if err != nil {
				t.Fatal(err)
			}
			want := len(caps.GetAddAmbientCapabilities())
			exec := BuildExec(spec, []string{"x"}, false).Capabilities
			if got := spec.Process.Capabilities; len(got.Inheritable) != want || len(got.Ambient) != want || len(exec.Inheritable) != want || len(exec.Ambient) != want {
				t.Errorf("%v: %+v", caps, got)
			}
		}
	})
	masked := func(t *testing.T, paths ...string) {
		c := testContainer()
		security(c).MaskedPaths, security(c).ReadonlyPaths = []string{"/proc/kcore"}, []string{"/proc/sys"}
		spec, _, err := Build(testNode(), testPod(), c)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			if !slices.Contains(spec.Linux.MaskedPaths, p) && !slices.Contains(spec.Linux.ReadonlyPaths, p) {
				t.Errorf("%s is not masked when an older kubelet leaves it out", p)
			}
		}
	}
	t.Run("GHSA-7ww5-4wqc-m92c", func(t *testing.T) { masked(t, "/sys/devices/virtual/powercap") })
	t.Run("GHSA-6fw5-f8r9-fgfm", func(t *testing.T) { masked(t, "/proc/interrupts") })
	t.Run("CVE-2017-16539", func(t *testing.T) {
		masked(t, "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
			"/proc/scsi", "/sys/firmware", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
	})
	t.Run("2.6-empty-lists", func(t *testing.T) {
		spec, _, err := Build(testNode(), testPod(), testContainer())
		if err != nil || len(spec.Linux.MaskedPaths)+len(spec.Linux.ReadonlyPaths) > 0 {
			t.Errorf("procMount Unmasked has %v, %v, %v", spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths, err)
		}
	})
	t.Run("CVE-2023-2431", func(t *testing.T) {
		nameless := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost}
		_, err := SeccompPath(testNode(), &runtimeapi.LinuxContainerSecurityContext{Seccomp: nameless})
		refused(t, "seccomp", err)
		_, err = AppArmorProfile(Node{AppArmor: true, AppArmorProfile: "gantry-default"}, &runtimeapi.LinuxContainerSecurityContext{Apparmor: nameless})
		refused(t, "apparmor", err)
	})
	t.Run("2.6-privileged", func(t *testing.T) {
		c := testContainer()
		security(c).Privileged = true
		_, _, err := Build(testNode(), testPod(), c)
		refused(t, "a privileged container in a pod that is not", err)
	})
}
