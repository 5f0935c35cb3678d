package ocispec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// need skips a test for a reason, or fails it in CI, where nothing is to be
// skipped in silence.
func need(t *testing.T, ok bool, reason string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("in CI this may not be skipped: " + reason)
	}
	t.Skip(reason)
}

// ociRuntime is the runtime to test with.
func ociRuntime(t *testing.T) string {
	t.Helper()
	if r := os.Getenv("GANTRY_TEST_RUNTIME"); r != "" {
		return r
	}
	r, err := exec.LookPath("runc")
	if err == nil {
		return r
	}
	need(t, false, "no OCI runtime: set GANTRY_TEST_RUNTIME or put runc into PATH (make demo builds one)")
	return ""
}

// busyboxRoot makes a root file system out of the host's static busybox.
func busyboxRoot(t *testing.T) string {
	t.Helper()
	box, err := os.ReadFile("/bin/busybox")
	if errors.Is(err, fs.ErrNotExist) {
		need(t, false, "no /bin/busybox: install busybox-static")
	}
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "rootfs")
	for _, dir := range []string{"bin", "etc", "tmp", "data"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), box, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "id", "cat", "ls", "grep", "touch", "mount", "hostname", "tty", "wc", "stat"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// ownNamespaces makes a network, an IPC and a UTS namespace that live until the test ends.
func ownNamespaces(t *testing.T) (dir string) {
	t.Helper()
	done := make(chan struct{})
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespaces
		err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
		if err == nil {
			err = unix.Sethostname([]byte("testpod"))
		}
		dir = fmt.Sprintf("/proc/%d/task/%d/ns/", os.Getpid(), unix.Gettid())
		ready <- err
		<-done
	}()
	t.Cleanup(func() { close(done) })
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	return dir
}

// thisNode is the node that the test runs on.
func thisNode(t *testing.T) Node {
	t.Helper()
	n := Node{MinOOMScoreAdj: -1000}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		n.Cgroup2 = true
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
	n.Capabilities = CapabilityNames(uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted))
	if !slices.Contains(n.Capabilities, "CAP_SYS_RESOURCE") {
		score, err := os.ReadFile("/proc/self/oom_score_adj")
		if err != nil {
			t.Fatal(err)
		}
		if n.MinOOMScoreAdj, err = strconv.Atoi(strings.TrimSpace(string(score))); err != nil {
			t.Fatal(err)
		}
		n.Rlimits = DefaultRlimits(ownLimits(t))
	}
	return n
}

func ownLimits(t *testing.T) []specs.POSIXRlimit {
	t.Helper()
	var limits []specs.POSIXRlimit
	for name, resource := range map[string]int{"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_CORE": unix.RLIMIT_CORE} {
		var l unix.Rlimit
		if err := unix.Getrlimit(resource, &l); err != nil {
			t.Fatal(err)
		}
		limits = append(limits, specs.POSIXRlimit{Type: name, Soft: l.Cur, Hard: l.Max})
	}
	return limits
}

// runSpec runs a spec to its end and returns the lines NAME=value that its
// process prints. Whatever happens, no container and no cgroup is left.
func runSpec(t *testing.T, oci string, spec *specs.Spec) map[string]string {
	t.Helper()
	bundle, state := t.TempDir(), t.TempDir()
	id := filepath.Base(spec.Linux.CgroupsPath)
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := exec.Command(oci, "--root", state, "delete", "--force", id).CombinedOutput(); err != nil {
			t.Logf("deleting: %v: %s", err, out)
		}
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + filepath.Dir(spec.Linux.CgroupsPath))
		for _, dir := range append(dirs, "/sys/fs/cgroup"+filepath.Dir(spec.Linux.CgroupsPath)) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("cgroup left behind: %v", err)
			}
		}
	})
	ctx := t.Context()
	cmd := exec.CommandContext(ctx, oci, "--root", state, "run", "--bundle", bundle, id)
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s run: %v\n%s%s\n%s", oci, err, stdout.String(), stderr.String(), data)
	}
	values := map[string]string{}
	for line := range strings.Lines(stdout.String()) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = value
	}
	return values
}

// look is a script that prints what a container is allowed.
const look = `
echo uid=$(id -u) ; echo gid=$(id -g) ; echo groups=$(id -G)
grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | while read k v; do echo ${k%:}=$v; done
echo oom=$(cat /proc/self/oom_score_adj)
echo host=$(hostname) ; echo HOSTNAME=$HOSTNAME ; echo pwd=$(pwd) ; echo PATH=$PATH ; echo pid=$$
echo keys=$(cat /proc/keys 2>/dev/null | wc -c)
cg=/sys/fs/cgroup; [ -d $cg/memory ] && cg=$cg/memory # version 1
if ( : >> $cg/cgroup.procs ) 2>/dev/null; then echo write:cgroup=yes; else echo write:cgroup=no; fi
for w in /rootfile /data/f /proc/sys/kernel/shm_next_id /dev/shm/x /etc/hosts /ro/f /rw/f; do
  if [ -d $w ]; then p=$w/probe; else p=$w; fi
  if ( : >> $p ) 2>/dev/null; then echo write:$w=yes; else echo write:$w=no; fi
done
echo nofile=$(ulimit -n)
echo null=$(stat -c %t:%T /dev/null) ; echo kmsg=$( [ -e /dev/kmsg ] && echo yes )
echo links=$(ls /sys/class/net | wc -l)
echo hosts=$(cat /etc/hosts)
`

func TestRunReal(t *testing.T) {
	need(t, os.Geteuid() == 0, "needs root to run containers")
	oci := ociRuntime(t)
	node, ns := thisNode(t), ownNamespaces(t)
	full := fmt.Sprintf("%016x", func() (set uint64) {
		for i, c := range knownCapabilities {
			if slices.Contains(node.Capabilities, c) {
				set |= 1 << i
			}
		}
		return set
	}())
	for _, tc := range []struct {
		name   string
		change func(*Pod, *Container)
		want   map[string]string
	}{{
		name: "user, masked paths, mounts, limits",
		change: func(_ *Pod, c *Container) {
			c.User = User{UID: 1000, GID: 1001, Groups: []uint32{1001, 2000, 3000}}
			sc := c.Config.Linux.SecurityContext
			sc.NoNewPrivs = true
			sc.MaskedPaths, sc.ReadonlyPaths = []string{"/proc/keys"}, []string{"/proc/sys"}
			sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
			c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 999, MemoryLimitInBytes: 64 << 20, CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000}
			c.Config.WorkingDir = "/data"
		},
		want: map[string]string{
			"uid": "1000", "gid": "1001", "groups": "1001 2000 3000",
			// No capability is effective for a user other than root, whatever the bounding set holds.
			"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000",
			"CapBnd": "00000000a80425fb", "NoNewPrivs": "1", "Seccomp": "2",
			"oom": "999", "host": "testpod", "HOSTNAME": "testpod", "pwd": "/data", "keys": "0",
			"write:/rootfile": "no", "write:/proc/sys/kernel/shm_next_id": "no", "write:cgroup": "no",
			"write:/dev/shm/x": "yes", "write:/ro/f": "no", "write:/rw/f": "yes", "nofile": "1024", "null": "1:3", "kmsg": "",
			"hosts": "127.0.0.1 localhost", "pid": "1",
		},
	}, {
		name: "root with a read-only root file system",
		change: func(_ *Pod, c *Container) {
			sc := c.Config.Linux.SecurityContext
			sc.ReadonlyRootfs = true
			sc.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"all"}, AddCapabilities: []string{"net_admin", "CAP_CHOWN"}}
		},
		want: map[string]string{
			"uid": "0", "groups": "0", "CapEff": "0000000000001001", "CapBnd": "0000000000001001", "CapAmb": "0000000000000000",
			"NoNewPrivs": "0", "Seccomp": "0", "write:cgroup": "no", "write:/rootfile": "no", "write:/data/f": "no", "write:/etc/hosts": "no",
			"write:/dev/shm/x": "yes", "write:/rw/f": "yes",
		},
	}, {
		name: "privileged",
		change: func(p *Pod, c *Container) {
			p.Config.Linux.SecurityContext.Privileged = true
			sc := c.Config.Linux.SecurityContext
			sc.Privileged = true
			c.AllDevices = true
			sc.MaskedPaths = []string{"/proc/keys"} // ignored, as are profiles
			sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
			mode := os.FileMode(0o600)
			c.Devices = []specs.LinuxDevice{{Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11, FileMode: &mode}}
		},
		want: map[string]string{
			"CapEff": full, "CapBnd": full, "CapInh": "0000000000000000", "Seccomp": "0", "write:/rootfile": "yes",
			"write:/proc/sys/kernel/shm_next_id": "yes", "kmsg": "yes", "write:cgroup": "yes", "HOSTNAME": "testpod",
		},
	}, {
		name: "the host's network and process namespaces",
		change: func(p *Pod, c *Container) {
			opts := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE}
			p.Config.Linux.SecurityContext.NamespaceOptions = opts
			c.Config.Linux.SecurityContext.NamespaceOptions = opts
			p.NetNS, p.UTSNS = "", ""
		},
		want: map[string]string{"uid": "0", "write:cgroup": "no"},
	}} {
		t.Run(tc.name, func(t *testing.T) {
			p, c := testPod(), testContainer()
			p.NetNS, p.IPCNS, p.UTSNS, p.Hostname = ns+"net", ns+"ipc", ns+"uts", "testpod"
			dir := t.TempDir()
			for _, d := range []string{"shm", "ro", "rw"} {
				if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(filepath.Join(dir, d), 0o777); err != nil {
					t.Fatal(err)
				}
			}
			p.ShmDir, p.HostsFile = filepath.Join(dir, "shm"), filepath.Join(dir, "hosts")
			p.ResolvConf, p.HostnameFile = "", ""
			if err := os.WriteFile(p.HostsFile, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			c.ID = fmt.Sprintf("ocispec-%d-%d", os.Getpid(), time.Now().UnixNano())
			c.Rootfs, c.CgroupsPath = busyboxRoot(t), fmt.Sprintf("/gantry-test-ocispec-%d/%s", os.Getpid(), c.ID)
			c.Config.Command, c.Config.Args = []string{"/bin/sh", "-c", look}, nil
			c.Config.Mounts = []*runtimeapi.Mount{
				{ContainerPath: "/ro", HostPath: filepath.Join(dir, "ro"), Readonly: true},
				{ContainerPath: "/rw", HostPath: filepath.Join(dir, "rw")},
			}
			c.Mounts = []Mount{{CRI: c.Config.Mounts[0], Source: filepath.Join(dir, "ro")}, {CRI: c.Config.Mounts[1], Source: filepath.Join(dir, "rw")}}
			tc.change(&p, &c)
			spec, warnings, err := Build(node, p, c)
			if err != nil {
				t.Fatal(err)
			}
			if len(warnings) > 0 {
				t.Errorf("warnings: %q", warnings)
			}
			got := runSpec(t, oci, spec)
			for key, want := range tc.want {
				if got[key] != want {
					t.Errorf("%s is %q, want %q", key, got[key], want)
				}
			}
		})
	}
}

// TestRunPodInit runs the init of a pod with a shared PID namespace. Its
// program is a script here, so that it can say what it may do.
func TestRunPodInit(t *testing.T) {
	need(t, os.Geteuid() == 0, "needs root to run containers")
	oci, node, ns := ociRuntime(t), thisNode(t), ownNamespaces(t)
	root := busyboxRoot(t)
	if err := os.WriteFile(filepath.Join(root, "init"), []byte("#!/bin/sh\n"+look), 0o755); err != nil {
		t.Fatal(err)
	}
	p := testPod()
	p.NetNS, p.IPCNS, p.UTSNS = ns+"net", ns+"ipc", ns+"uts"
	p.Config.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 4711}
	spec, err := BuildPodInit(node, p, root, fmt.Sprintf("/gantry-test-ocispec-%d/init-%d", os.Getpid(), time.Now().UnixNano()))
	if err != nil {
		t.Fatal(err)
	}
	got := runSpec(t, oci, spec)
	for key, want := range map[string]string{
		"uid": "4711", "gid": "0", "groups": "0", "pid": "1", "host": "testpod", "NoNewPrivs": "1", "Seccomp": "2",
		"CapEff": "0000000000000000", "CapBnd": "0000000000000000", "write:/rootfile": "no", "keys": "0",
		"oom": strconv.Itoa(max(-998, node.MinOOMScoreAdj)),
	} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
}
