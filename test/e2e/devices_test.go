package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func devices(list ...*runtimeapi.Device) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { c.Devices = list }
}

func TestDevices(t *testing.T) {
	n := newNode(t)
	dir := filepath.Join(n.LogDir, "devices")
	if err := os.MkdirAll(filepath.Join(dir, "deeper"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, minor := range map[string]uint32{"zero": 5, "deeper/full": 7} {
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR|0o640, int(unix.Mkdev(1, minor))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/kmsg", filepath.Join(n.LogDir, "link")); err != nil {
		t.Fatal(err)
	}
	p := n.runPod("pod")
	logs := security(func(s *securityContext) { s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYSLOG"}} }) // kernel.dmesg_restrict
	c := p.run("c", forever, logs, devices(
		&runtimeapi.Device{HostPath: dir, ContainerPath: "/dev/more", Permissions: "rwm"},
		&runtimeapi.Device{HostPath: filepath.Join(n.LogDir, "link"), ContainerPath: "/dev/log", Permissions: "r"},
		&runtimeapi.Device{HostPath: "/dev/kmsg", Permissions: "r"},
	))
	for script, want := range map[string]string{
		"cd /dev/more; find . -type c | sort":                             "./deeper/full\n./zero\n",
		"stat -c '%t %T %a %u %g' /dev/more/zero /dev/log":                "1 5 640 0 0\n1 b " + mode(t, "/dev/kmsg") + "\n",
		"head -c 2 /dev/more/zero | wc -c":                                "2\n",
		"head -c 0 /dev/log && echo may read":                             "may read\n",
		"head -c 0 /dev/kmsg && echo may read":                            "may read\n",
		"(: > /dev/log) 2>&1 | grep -o 'Operation not permitted'; true":   "Operation not permitted\n", // permission "r" alone
		"mknod /mem c 1 1; head -c 1 /mem 2>&1 | grep -o 'not permitted'": "not permitted\n",
		"ls /dev/more/file 2>/dev/null || echo no file":                   "no file\n",
	} {
		if got := c.exec("sh", "-c", script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	for _, bad := range []struct{ host, target, permissions, named string }{
		{"/", "/dev/x", "rwm", `"/"`},
		{"/proc", "/dev/x", "rwm", `"/proc"`}, // ADA-CRIO-22-04
		{"/dev/no-such-device", "/dev/x", "rwm", "/dev/no-such-device"},
		{filepath.Join(dir, "file"), "/dev/x", "rwm", "is no device"},
		{"/dev/null", "/dev/x", "rwx", "permissions"},
		{"/dev/null", "/dev/x", "", "permissions"},
		{"/dev/null", "/proc/x", "r", "/proc/x"},
		{"/dev/null", "/sys/x", "r", "/sys/x"},
		{"/dev/null", "relative", "r", "relative"},
		{"/dev/null", "/dev/../x", "r", ".."},
	} {
		_, err := p.tryCreate(p.containerConfig("bad", forever, devices(&runtimeapi.Device{HostPath: bad.host, ContainerPath: bad.target, Permissions: bad.permissions})))
		wantError(t, err, codes.InvalidArgument, "device", bad.named)
	}
}

// mode is what stat prints of a device as "%a %u %g".
func mode(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%o %d %d", st.Mode&0o7777, st.Uid, st.Gid)
}

// Devices are their owner's on the host, unless the configuration gives them to the container's user.
func TestDeviceOwnership(t *testing.T) {
	n := configured(t, "device_ownership_from_security_context = true\n")
	p := n.runPod("pod", privilegedPod)
	for name, row := range map[string]struct {
		want   string
		change func(*securityContext)
	}{
		"user and group": {"1000 1001", func(s *securityContext) { s.RunAsUser, s.RunAsGroup = id(1000), id(1001) }},
		"user alone":     {"1000 0", func(s *securityContext) { s.RunAsUser = id(1000) }},
		"nobody named":   {"0 0", func(*securityContext) {}},
		"user by name":   {"0 0", func(s *securityContext) { s.RunAsUsername = "www-data" }},
	} {
		got, _ := p.output(strings.ReplaceAll(name, " ", "-"), "stat -c '%u %g' /dev/zero-too", security(row.change),
			devices(&runtimeapi.Device{HostPath: "/dev/zero", ContainerPath: "/dev/zero-too", Permissions: "r"}))
		if got != row.want+"\n" {
			t.Errorf("%s: the device is %q's, want %s", name, got, row.want)
		}
	}
	plain := newNode(t).runPod("pod")
	got, _ := plain.output("c", "stat -c '%u %g' /dev/zero-too", security(func(s *securityContext) { s.RunAsUser = id(1000) }),
		devices(&runtimeapi.Device{HostPath: "/dev/zero", ContainerPath: "/dev/zero-too", Permissions: "r"}))
	if got != "0 0\n" {
		t.Errorf("without the option the device is %q's", got)
	}
}
