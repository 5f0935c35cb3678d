package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// configured starts an instance with a configuration of its own, in TOML, and busybox.
func configured(t *testing.T, toml string, flags ...string) *node {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, Instance: harness.New(t, harness.Config{Registry: harness.Registry(t), Flags: append([]string{"--config", file}, flags...)})}
	n.pull(images.Busybox)
	return n
}

func privilegedPod(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }

func privileged(s *securityContext) { s.Privileged = true }

// everythingConfining is what the kubelet may send along with privileged, and what then has no effect.
func everythingConfining(s *securityContext) {
	s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/keys", "/sys/firmware"}, []string{"/proc/sys"}
	s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
}

func TestPrivileged(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod", privilegedPod)
	c := p.run("privileged", forever, security(privileged), security(everythingConfining))
	plain := p.run("plain", forever, security(func(s *securityContext) { s.ReadonlyPaths = []string{"/proc/sys"} }))
	for what, script := range map[string]string{
		"mounts":                         "mkdir -p /mnt && mount -t tmpfs none /mnt && umount /mnt",
		"writes to sysctls":              "v=$(cat /proc/sys/kernel/shmmni) && echo $v > /proc/sys/kernel/shmmni",
		"has a writable sys":             "mount | grep -q '^sysfs on /sys .*rw'",
		"makes cgroups":                  "d=$(ls -d /sys/fs/cgroup/memory 2>/dev/null || echo /sys/fs/cgroup) && mkdir $d/x && rmdir $d/x",
		"has the devices of the host":    "test -c /dev/kmsg",
		"opens the devices of the host":  "head -c 0 /dev/kmsg",
		"has no seccomp filter":          "grep -q 'Seccomp:.0' /proc/self/status",
		"has more than the capabilities": "! grep -q CapEff:.00000000a80425fb /proc/self/status",
		"makes devices and may use them": "mknod /x c 1 11 && head -c 0 /x && rm /x",
		"sees its own limits' hierarchy": "test -e /sys/fs/cgroup/cgroup.controllers -o -d /sys/fs/cgroup/memory",
	} {
		if resp, err := c.execSync(10, "sh", "-c", script); err != nil || resp.GetExitCode() != 0 {
			t.Errorf("privileged: %s: code %d, %s, %v", what, resp.GetExitCode(), resp.GetStderr(), err)
		}
		if what == "has no seccomp filter" || strings.HasPrefix(what, "sees") {
			continue
		}
		if resp, err := plain.execSync(10, "sh", "-c", script); err != nil || resp.GetExitCode() == 0 {
			t.Errorf("not privileged, yet it %s, %v", what, err)
		}
	}
	if got := c.exec("wc", "-c", "/proc/keys"); strings.HasPrefix(got, "0 ") && read(t, "/proc/keys") != "" {
		t.Error("paths of a privileged container are masked")
	}

	// Only a privileged pod may have privileged containers.
	unprivileged := n.runPod("plain")
	_, err := unprivileged.tryCreate(unprivileged.containerConfig("c", forever, security(privileged)))
	wantError(t, err, codes.InvalidArgument, "privileged")
}

// A handler can keep the host's devices from privileged containers; those of the request they get.
func TestPrivilegedWithoutHostDevices(t *testing.T) {
	n := configured(t, "[runtimes.runc]\nprivileged_without_host_devices = true\n")
	c := n.runPod("pod", privilegedPod).run("c", forever, security(privileged), func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/zero-too", Permissions: "r"}}
	})
	got := c.exec("sh", "-c", "ls /dev | grep -vx core | tr '\\n' ' '; mknod /kmsg c 1 11; head -c 0 /kmsg 2>&1; head -c 3 /dev/zero-too | wc -c; mkdir -p /mnt; mount -t tmpfs none /mnt && echo mounts")
	want := "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero zero-too head: /kmsg: Operation not permitted\n3\nmounts\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
