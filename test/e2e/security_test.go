package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/images"
)

// guestImage has, beside busybox, the guest command of package images as guestProgram.
const (
	guestImage   = images.Web
	guestProgram = "/nginx"
)

type securityContext = runtimeapi.LinuxContainerSecurityContext

func id(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }

// Each row runs a script under a security context and looks at what it printed.
func TestSecurityContext(t *testing.T) {
	n := newNode(t)
	n.pull(images.Users)
	p := n.runPod("pod")
	for name, row := range map[string]struct {
		image, script, want string
		change              func(*securityContext)
	}{
		"root by default":      {"", "id -u; id -g", "0\n0\n", func(*securityContext) {}},
		"user by id":           {"", "id -u", "1001\n", func(s *securityContext) { s.RunAsUser = id(1001) }},
		"user and group by id": {"", "echo $(id -u):$(id -g)", "1001:1002\n", func(s *securityContext) { s.RunAsUser, s.RunAsGroup = id(1001), id(1002) }},
		"user by name":         {"", "id -nu; id -ng", "www-data\nwww-data\n", func(s *securityContext) { s.RunAsUsername = "www-data" }},
		"user of the image":    {images.Users, "echo $(id -u):$(id -G)", "1000:1000 50000\n", func(*securityContext) {}},
		"supplemental groups":  {"", "id -G", "0 1234 5678\n", func(s *securityContext) { s.SupplementalGroups = []int64{1234, 5678} }},
		"groups merged":        {images.Users, "id -G", "1000 1234 50000\n", func(s *securityContext) { s.SupplementalGroups = []int64{1234} }},
		"groups strict": {images.Users, "id -G", "1000 1234\n", func(s *securityContext) {
			s.SupplementalGroups, s.SupplementalGroupsPolicy = []int64{1234}, runtimeapi.SupplementalGroupsPolicy_Strict
		}},
		"read-only root": {"", "touch /x 2>&1; touch /dev/shm/x && echo shm is writable", "touch: /x: Read-only file system\nshm is writable\n", func(s *securityContext) { s.ReadonlyRootfs = true }},
		"writable root":  {"", "touch /x && echo ok", "ok\n", func(*securityContext) {}},
		"masked path":    {"", "cat /etc/passwd | wc -c; ls /home | wc -l", "0\n0\n", func(s *securityContext) { s.MaskedPaths = []string{"/etc/passwd", "/home"} }},
		"read-only path": {"", "touch /tmp/x 2>&1", "touch: /tmp/x: Read-only file system\n", func(s *securityContext) { s.ReadonlyPaths = []string{"/tmp"} }},
		"seccomp unconfined": {"", "grep ^Seccomp: /proc/self/status", "Seccomp:\t0\n", func(s *securityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		}},
		"seccomp default": {"", "grep ^Seccomp: /proc/self/status; unshare -U true 2>&1", "Seccomp:\t2\nunshare: unshare(0x10000000): Operation not permitted\n", func(s *securityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		}},
		"no new privileges":    {"", "grep ^NoNewPrivs: /proc/self/status", "NoNewPrivs:\t1\n", func(s *securityContext) { s.NoNewPrivs = true }},
		"new privileges":       {"", "grep ^NoNewPrivs: /proc/self/status", "NoNewPrivs:\t0\n", func(*securityContext) {}},
		"default capabilities": {"", "grep ^CapBnd: /proc/self/status", "CapBnd:\t00000000a80425fb\n", func(*securityContext) {}},
		"no capabilities": {"", "grep ^CapBnd: /proc/self/status", "CapBnd:\t0000000000000000\n", func(s *securityContext) {
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
		}},
		"one capability": {"", "grep ^CapEff: /proc/self/status", "CapEff:\t0000000000001000\n", func(s *securityContext) {
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_ADMIN"}}
		}},
		"capabilities of a user": {"", "grep ^CapEff: /proc/self/status", "CapEff:\t0000000000000000\n", func(s *securityContext) {
			s.RunAsUser, s.Capabilities = id(1001), &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got, _ := p.in(t).output(strings.ReplaceAll(name, " ", "-"), row.script, security(row.change), func(c *runtimeapi.ContainerConfig) {
				if row.image != "" {
					c.Image = &runtimeapi.ImageSpec{Image: row.image, UserSpecifiedImage: row.image}
				}
			})
			if got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}

func TestLocalhostSeccompProfile(t *testing.T) {
	n := newNode(t)
	profile := filepath.Join(n.LogDir, "no-chmod.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	got, _ := n.runPod("pod").output("c", "chmod 700 /tmp 2>&1; echo code $?", security(func(s *securityContext) {
		s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: profile}
	}))
	if want := "chmod: /tmp: Operation not permitted\ncode 1\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestMountsAndDevices(t *testing.T) {
	n := newNode(t)
	host := filepath.Join(n.LogDir, "volume")
	if err := os.MkdirAll(host, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("from the host\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(n.LogDir, "link")
	if err := os.Symlink(host, link); err != nil {
		t.Fatal(err)
	}
	got, _ := n.runPod("pod").output("c", "cat /deep/er/rw/file /ro/file; touch /ro/x 2>&1; echo back > /deep/er/rw/back; ls -l /dev/zero-too | cut -c1; head -c 3 /dev/zero-too | wc -c",
		func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: link, ContainerPath: "/deep/er/rw"}, {HostPath: host, ContainerPath: "/ro", Readonly: true}}
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/zero-too", Permissions: "r"}}
		})
	if want := "from the host\nfrom the host\ntouch: /ro/x: Read-only file system\nc\n3\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if back, err := os.ReadFile(filepath.Join(host, "back")); err != nil || string(back) != "back\n" {
		t.Errorf("written through the volume: %q, %v", back, err)
	}
}

// What a container must not see or reach, whatever its config (SECURITY: own /dev, masked /proc, denied devices).
func TestConfinement(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever, security(func(s *securityContext) {
		s.MaskedPaths = []string{"/proc/kcore", "/proc/keys", "/proc/timer_list"}
		s.ReadonlyPaths = []string{"/proc/sys", "/proc/sysrq-trigger"}
	}))
	for script, want := range map[string]string{
		"mknod /disk b 8 0 && cat /disk 2>&1 | head -c 60":                                      "cat: can't open '/disk': Operation not permitted",
		"head -c 1 /proc/kcore | wc -c":                                                         "0",
		"(echo 1 > /proc/sys/vm/drop_caches) 2>&1 || true":                                      "sh: can't create /proc/sys/vm/drop_caches: Read-only file system",
		"ls /dev | grep -c -e ^sd -e ^vd -e ^kmsg -e ^mem; true":                                "0",
		"ls /proc | grep -c '^[0-9]'":                                                           "3",
		"cat /sys/fs/cgroup/x 2>/dev/null; mount -o remount,rw /sys 2>/dev/null || echo denied": "denied",
	} {
		resp, err := c.execSync(10, "sh", "-c", script)
		got := strings.TrimSpace(string(resp.GetStdout()))
		if strings.Contains(script, "grep -c '^[0-9]'") {
			if err != nil || len(got) != 1 { // process 1 and this pipeline, nothing of the host
				t.Errorf("%s: %q, %v", script, got, err)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", script, got, err, want)
		}
	}
}
