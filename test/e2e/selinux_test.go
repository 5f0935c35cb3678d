package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
)

func needSELinux(t *testing.T) {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		t.Skip("this machine does not run SELinux; hack/test-vm.sh selinux tests on one that does")
	}
}

// fileLabel is the SELinux label of a file, a symbolic link too.
func fileLabel(t testing.TB, path string) string {
	t.Helper()
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(path, "security.selinux", buf)
	if err != nil {
		t.Fatalf("label of %s: %v", path, err)
	}
	return strings.TrimRight(string(buf[:n]), "\x00")
}

func selinuxOptions(user, kind, level string) func(*securityContext) {
	return func(s *securityContext) {
		s.SelinuxOptions = &runtimeapi.SELinuxOption{User: user, Type: kind, Level: level}
	}
}

const (
	containerProcess = "system_u:system_r:container_t:"
	containerFile    = "system_u:object_r:container_file_t:"
)

var uniqueLevel = regexp.MustCompile(`^s0:c\d{1,4},c\d{1,4}$`)

// processLabel is the label of the container's first process, and one that is exec'd must have it too.
func (c *container) processLabel() string {
	c.t.Helper()
	lines := strings.Fields(strings.ReplaceAll(c.exec("sh", "-c", "cat /proc/1/attr/current; echo; cat /proc/self/attr/current"), "\x00", ""))
	if len(lines) != 2 || lines[0] != lines[1] {
		c.t.Errorf("container %s: labels of its first process and of an exec are %q", c.name, lines)
	}
	return lines[0]
}

// fileLabel is the label of a file as the container sees it.
func (c *container) fileLabel(path string) string {
	c.t.Helper()
	return fileLabel(c.t, fmt.Sprintf("/proc/%d/root%s", c.pid(), path))
}

// Processes have the pod's label but for what the request says, and all that containers see as files has it too.
func TestSELinuxLabels(t *testing.T) {
	needSELinux(t)
	n := configured(t, "selinux = true\n")
	id := n.pullData()
	p := n.runPod("pod", privilegedPod)
	first := p.run("first", forever, mounts(&runtimeapi.Mount{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: id}}))
	label := first.processLabel()
	level := strings.TrimPrefix(label, containerProcess)
	if !uniqueLevel.MatchString(level) {
		t.Fatalf("the label of a process is %q", label)
	}
	first.exec("sh", "-c", "echo a > /new && echo a > /dev/shm/new")
	for _, path := range []string{"/", "/bin", "/new", "/dev/shm/new", "/image", "/image/tool", "/dev/shm", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev", "/dev/mqueue"} {
		if got := first.fileLabel(path); got != containerFile+level {
			t.Errorf("%s has the label %q, want %s", path, got, containerFile+level)
		}
	}

	for name, row := range map[string]struct {
		want   string
		change func(*securityContext)
	}{
		"same pod":                {label, func(*securityContext) {}},
		"type":                    {"system_u:system_r:other_t:" + level, selinuxOptions("", "other_t", "")},
		"user":                    {"other_u:system_r:container_t:" + level, selinuxOptions("other_u", "", "")},
		"level":                   {containerProcess + "s0:c7,c8", selinuxOptions("", "", "s0:c7,c8")},
		"privileged":              {"system_u:system_r:spc_t:s0-s0:c0.c1023", privileged},
		"privileged with a level": {"system_u:system_r:spc_t:s0-s0:c0.c1023", func(s *securityContext) { privileged(s); selinuxOptions("", "", "s0:c7,c8")(s) }},
		"privileged with a type":  {"system_u:system_r:other_t:" + level, func(s *securityContext) { privileged(s); selinuxOptions("", "other_t", "")(s) }},
	} {
		t.Run(name, func(t *testing.T) {
			if got := p.in(t).run(strings.ReplaceAll(name, " ", "-"), forever, security(row.change)).processLabel(); got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
	for _, bad := range []struct{ user, kind, level, named string }{
		{"", "no_such_t", "", "no_such_t"}, {"", "a:b", "", "type"}, {`x"`, "", "", "user"}, {"", "", "s0,c1", "level"},
	} {
		_, err := p.tryCreate(p.containerConfig("bad", forever, security(selinuxOptions(bad.user, bad.kind, bad.level))))
		wantError(t, err, codes.InvalidArgument, "selinux_options", bad.named)
	}
	_, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: n.podConfig("bad", podLabel("", "no_such_t", ""))})
	wantError(t, err, codes.InvalidArgument, "selinux_options", "no_such_t")
}

func podLabel(user, kind, level string) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{User: user, Type: kind, Level: level}
	}
}

// A pod's level is its own, or what the request says, and it stays so when the daemon is killed. Its init has it too.
func TestSELinuxPods(t *testing.T) {
	needSELinux(t)
	n := configured(t, "selinux = true\n")
	given := n.runPod("given", podLabel("other_u", "other_t", "s0:c3,c5"), sharedPID)
	a, b := n.runPod("a"), n.runPod("b", hostNetwork)
	c := given.run("c", forever)
	const want = "other_u:system_r:other_t:s0:c3,c5"
	if got := c.processLabel(); got != want { // of the pod's init, for its PID namespace is shared
		t.Errorf("got %q, want %q", got, want)
	}
	if got := c.fileLabel("/"); got != "other_u:object_r:container_file_t:s0:c3,c5" {
		t.Errorf("the root has the label %q", got)
	}
	before := a.run("c", forever).processLabel()
	other := b.run("c", forever).processLabel()
	if before == other || !strings.HasPrefix(other, containerProcess) {
		t.Errorf("two pods have the labels %q and %q", before, other)
	}
	mapped := n.runPod("mapped", userns(100_000, 65536)).run("c", forever)
	if label := mapped.processLabel(); !strings.HasPrefix(label, containerProcess) || mapped.fileLabel("/bin") != containerFile+strings.TrimPrefix(label, containerProcess) || mapped.fileLabel("/dev/mqueue") != mapped.fileLabel("/bin") {
		t.Errorf("with a user namespace processes have the label %q, files %q", label, mapped.fileLabel("/bin"))
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := a.run("later", forever).processLabel(); got != before {
		t.Errorf("after a restart the pod's label is %q, it was %q", got, before)
	}
	if got := n.runPod("new").run("c", forever).processLabel(); got == before || got == other || got == want {
		t.Errorf("a new pod has the label %q of another", got)
	}
}

// Volumes get the label where the request wants it, without following links; nothing else does.
func TestSELinuxRelabel(t *testing.T) {
	needSELinux(t)
	n := configured(t, "selinux = true\n")
	p := n.runPod("pod")
	dir := filepath.Join(n.LogDir, "volumes")
	for _, name := range []string{"yes/deep", "no/deep"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"yes/deep/file", "no/deep/file", "outside", "hosts"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("a\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(dir, "outside"), filepath.Join(dir, "yes/link")); err != nil {
		t.Fatal(err)
	}
	host := fileLabel(t, filepath.Join(dir, "outside"))
	shm := fileLabel(t, "/dev/shm")
	c := p.run("c", forever, mounts(
		&runtimeapi.Mount{ContainerPath: "/yes", HostPath: filepath.Join(dir, "yes"), SelinuxRelabel: true},
		&runtimeapi.Mount{ContainerPath: "/no", HostPath: filepath.Join(dir, "no")},
		// CVE-2021-43816: what is mounted over the pod's own files and is not to be relabelled stays as it is.
		&runtimeapi.Mount{ContainerPath: "/etc/hosts", HostPath: filepath.Join(dir, "hosts")},
		&runtimeapi.Mount{ContainerPath: "/etc/resolv.conf", HostPath: "/etc/resolv.conf", Readonly: true},
		&runtimeapi.Mount{ContainerPath: "/dev/shm", HostPath: "/dev/shm"},
	))
	volume := containerFile + strings.TrimPrefix(c.processLabel(), containerProcess)
	for name, want := range map[string]string{
		"yes": volume, "yes/deep": volume, "yes/deep/file": volume, "yes/link": volume,
		"no": host, "no/deep": host, "no/deep/file": host, "outside": host, "hosts": host,
	} {
		if got := fileLabel(t, filepath.Join(dir, name)); got != want {
			t.Errorf("%s has the label %q, want %q", name, got, want)
		}
	}
	if got := fileLabel(t, "/dev/shm"); got != shm {
		t.Errorf("the host's /dev/shm has the label %q, it was %q", got, shm)
	}
	for _, path := range []string{"/", "/etc", "/home", "/usr", "/var", "/dev/shm", "/etc/hosts", "/proc"} {
		_, err := p.tryCreate(p.containerConfig("bad", forever, mounts(&runtimeapi.Mount{ContainerPath: "/host", HostPath: path, SelinuxRelabel: true})))
		wantError(t, err, codes.InvalidArgument, "mounts[0].selinux_relabel", path, "not changed")
	}
}

// A node that is to give labels and cannot does not start.
func TestSELinuxWanted(t *testing.T) {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		t.Skip("this machine runs SELinux")
	}
	harness.Require(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, []byte("selinux = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := harness.Gantry(t.Context(), "serve", "--config", config, "--root", filepath.Join(dir, "root"), "--run", filepath.Join(dir, "run"))
	if err == nil || !strings.Contains(out+err.Error(), "selinux = true: this machine does not run SELinux") {
		t.Errorf("got %q, %v", out, err)
	}
}

// Without selinux in the configuration a node with SELinux is as one without: relabelling is what most volumes ask for.
func TestSELinuxOff(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod", podLabel("", "some_t", "s0:c1,c2"))
	dir := filepath.Join(n.LogDir, "volume")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256)
	size, _ := unix.Lgetxattr(dir, "security.selinux", buf)
	p.run("c", forever, security(selinuxOptions("", "some_t", "")), mounts(&runtimeapi.Mount{ContainerPath: "/v", HostPath: dir, SelinuxRelabel: true}))
	if now, _ := unix.Lgetxattr(dir, "security.selinux", make([]byte, 256)); now != size {
		t.Errorf("the volume has been labelled")
	}
	if log := n.LogTail(100); !strings.Contains(log, "selinux_options have no effect") {
		t.Errorf("nothing in the log tells of options without effect: %s", log)
	}
}
