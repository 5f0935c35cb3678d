package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idsFrom is a mapping as the kubelet's: the same length for all pods.
func idsFrom(host uint32) []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{HostId: host, Length: 65536}}
}

// userns gives a pod a user namespace of its own.
func userns(uid, gid uint32) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{
			Mode: runtimeapi.NamespaceMode_POD, Uids: idsFrom(uid), Gids: idsFrom(gid)}
	}
}

// handlers are flags for instances with each OCI runtime that the tests know.
func handlers(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{"runc": nil}
	switch crun, err := exec.LookPath("crun"); {
	case err == nil:
		all["crun"] = []string{"--runtime", "crun=" + crun, "--default-runtime", "crun"}
	case os.Getenv("CI") == "true":
		t.Fatal("crun is not installed: hack/install-deps.sh test")
	default:
		t.Log("without crun, which is not installed")
	}
	return all
}

// What processes of a pod with a user namespace see, and what the host sees of them.
func TestUserNamespace(t *testing.T) {
	for name, flags := range handlers(t) {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, flags...)
			n.pullData()
			p := n.runPod("pod", userns(100_000, 200_000), func(c *runtimeapi.PodSandboxConfig) {
				c.Linux.Sysctls = map[string]string{"kernel.msgmax": "4096", "net.ipv4.tcp_keepalive_time": "77", "fs.mqueue.msg_max": "11"}
			})
			vol := filepath.Join(n.LogDir, "vol")
			if err := errors.Join(os.Mkdir(vol, 0o755), os.WriteFile(filepath.Join(vol, "f"), []byte("x"), 0o600)); err != nil {
				t.Fatal(err)
			}
			c := p.run("c", "echo logged > /dev/stdout; "+forever, func(c *runtimeapi.ContainerConfig) {
				c.WorkingDir = "/new/dir"
				c.Mounts = []*runtimeapi.Mount{
					{ContainerPath: "/vol", HostPath: vol, UidMappings: idsFrom(100_000), GidMappings: idsFrom(200_000)},
					{ContainerPath: "/plain", HostPath: vol, Readonly: true},
					volume("/image", dataImage, ""),
				}
				c.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/zero-too", Permissions: "r"}}
			})
			for script, want := range map[string]string{
				"cat /proc/self/uid_map /proc/self/gid_map | tr -s ' ' | tr '\n' ,": " 0 100000 65536, 0 200000 65536,",
				"id -u; id -g": "0\n0",
				"stat -c %u:%g / /new/dir /dev/shm /etc/hosts /etc/hostname /etc/resolv.conf /vol/f /image/conf | sort | uniq -c | tr -s ' '": " 8 0:0",
				"stat -c %u:%g /plain/f":                     "65534:65534",
				"cat /plain/f 2>&1; true":                    "cat: can't open '/plain/f': Permission denied",
				"hostname":                                   "pod",
				"hostname other 2>&1; true":                  "hostname: sethostname: Operation not permitted",
				"touch /vol/new /dev/shm/x /y && cat /vol/f": "x",
				"cat /image/conf/b":                          "v",
				"cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/tcp_keepalive_time /proc/sys/fs/mqueue/msg_max /proc/sys/net/ipv4/ip_unprivileged_port_start": "4096\n77\n11\n0",
				"cat /proc/sys/net/ipv4/ping_group_range":           "0\t65535",
				"echo x > /dev/stdout; echo y > /dev/stderr":        "x",
				"head -c 3 /dev/zero-too | wc -c":                   "3",
				"touch /z && chown 65535:65535 /z && stat -c %u /z": "65535",
				"ls /dev/mqueue /dev/pts":                           "/dev/mqueue:\n\n/dev/pts:\nptmx",
				"mount -t tmpfs x /tmp 2>&1 | grep -c denied":       "1",
			} {
				resp, err := c.execSync(30, "sh", "-c", script)
				if got := strings.TrimSuffix(string(resp.GetStdout()), "\n"); err != nil || got != want {
					t.Errorf("%s: %q, want %q (%s, %v)", script, got, want, resp.GetStderr(), err)
				}
			}
			if got := c.logged("stdout"); got != "logged\n" {
				t.Errorf("logged %q", got)
			}
			if got := owner(t, filepath.Join(vol, "new")); got != "0:0" {
				t.Errorf("a file made in the mapped volume belongs to %s on the host", got)
			}
			if got := owner(t, fmt.Sprintf("/proc/%d", c.pid())); got != "100000:200000" {
				t.Errorf("the process is %s on the host", got)
			}
			for _, kind := range []string{"net", "ipc", "uts", "pid", "mnt"} {
				if ns, err := ownerNamespace(fmt.Sprintf("/proc/%d/ns/%s", c.pid(), kind)); err != nil || ns != nsID(t, c.pid(), "user") {
					t.Errorf("the %s namespace is owned by the user namespace %d, %v", kind, ns, err)
				}
			}
			if st := c.status(); len(st.GetMounts()) != 3 || st.GetMounts()[0].GetUidMappings()[0].GetHostId() != 100_000 || st.GetMounts()[2].GetImage() == nil || st.GetUser().GetLinux().GetUid() != 0 {
				t.Errorf("status: %v", st)
			}
			if got := p.status().GetLinux().GetNamespaces().GetOptions().GetUsernsOptions().GetUids()[0].GetHostId(); got != 100_000 {
				t.Errorf("status of the pod: host id %d", got)
			}
			got, _ := p.output("user", "id -u; id -g; id -G; mkdir here; stat -c %u .", security(func(s *securityContext) {
				s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = id(1001), id(1002), []int64{65535}
			}), func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/work" })
			if want := "1001\n1002\n1002 65535\n1001\n"; got != want {
				t.Errorf("as another user: %q, want %q", got, want)
			}
		})
	}
}

func owner(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

func nsID(t *testing.T, pid int, kind string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, kind), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// ownerNamespace is the inode of the user namespace that owns a namespace (ioctl_ns(2)).
func ownerNamespace(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return st.Ino, err
}

// A shared PID namespace, a terminal, a read-only root, a privileged container: each in a user namespace.
func TestUserNamespaceVariants(t *testing.T) {
	for name, flags := range handlers(t) {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, flags...)
			p := n.runPod("pod", userns(100_000, 100_000), sharedPID, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
			if got, _ := p.output("shared", "cat /proc/1/cmdline | tr -d '\\0'; cat /proc/self/uid_map | tr -s ' '"); got != "/init 0 100000 65536\n" {
				t.Errorf("shared PID namespace: %q", got)
			}
			got, _ := p.output("tty", "tty; stat -c %u:%g $(tty)", func(c *runtimeapi.ContainerConfig) { c.Tty = true })
			if want := "/dev/pts/0\r\n0:5\r\n"; got != want {
				t.Errorf("terminal: %q, want %q", got, want)
			}
			got, _ = p.output("readonly", "touch /x /dev/shm/x 2>&1; ls /dev/shm", security(func(s *securityContext) { s.ReadonlyRootfs = true }))
			if want := "touch: /x: Read-only file system\nx\n"; got != want {
				t.Errorf("read-only root: %q, want %q", got, want)
			}
			// Privileged is so in its own user namespace: it mounts, and cannot touch what is the host's.
			got, _ = p.output("privileged", "mkdir -p /mnt && mount -t tmpfs none /mnt && echo mounts; (echo 1 > /proc/sys/vm/drop_caches) 2>&1 | grep -c denied; grep -c '' /dev/kmsg 2>&1 | head -c 30",
				security(func(s *securityContext) { s.Privileged = true }))
			if !strings.HasPrefix(got, "mounts\n1\n") {
				t.Errorf("privileged: %q", got)
			}
		})
	}
}

// On the host's network: there is no new /sys then, so the container has the host's, read-only.
func TestUserNamespaceHostNetwork(t *testing.T) {
	for name, flags := range handlers(t) {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, flags...)
			p := n.runPod("pod", userns(100_000, 100_000), hostNetwork)
			c := p.run("c", forever)
			if nsID(t, c.pid(), "net") != nsID(t, os.Getpid(), "net") {
				t.Error("not on the host's network")
			}
			resp, err := c.execSync(30, "sh", "-c", "cat /proc/self/uid_map | tr -s ' '; ls /sys/class/net | grep -c -w lo; touch /sys/x 2>&1; ls -d /sys/fs/cgroup; ip link add d0 type dummy 2>&1 | grep -c -i 'not permitted'")
			if want := " 0 100000 65536\n1\ntouch: /sys/x: Read-only file system\n/sys/fs/cgroup\n1\n"; err != nil || string(resp.GetStdout()) != want {
				t.Errorf("%q, want %q (%s, %v)", resp.GetStdout(), want, resp.GetStderr(), err)
			}
		})
	}
}

// What cannot be given is refused, and leaves nothing.
func TestUserNamespaceRefused(t *testing.T) {
	n := newNode(t)
	pod := func(change func(ns *runtimeapi.NamespaceOption)) error {
		c := n.podConfig("refused", userns(100_000, 100_000), func(c *runtimeapi.PodSandboxConfig) { change(c.Linux.SecurityContext.NamespaceOptions) })
		resp, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: c})
		if err == nil {
			_ = n.removePod(resp.GetPodSandboxId())
		}
		return err
	}
	uids := func(m ...*runtimeapi.IDMapping) func(ns *runtimeapi.NamespaceOption) {
		return func(ns *runtimeapi.NamespaceOption) { ns.UsernsOptions.Uids = m }
	}
	for name, row := range map[string]struct {
		change func(ns *runtimeapi.NamespaceOption)
		names  string
	}{
		"mode CONTAINER":  {func(ns *runtimeapi.NamespaceOption) { ns.UsernsOptions.Mode = runtimeapi.NamespaceMode_CONTAINER }, "userns_options.mode"},
		"mode TARGET":     {func(ns *runtimeapi.NamespaceOption) { ns.UsernsOptions.Mode = runtimeapi.NamespaceMode_TARGET }, "userns_options.mode"},
		"no mapping":      {uids(), "userns_options.uids"},
		"two":             {uids(&runtimeapi.IDMapping{HostId: 1000, Length: 10}, &runtimeapi.IDMapping{HostId: 5000, ContainerId: 10, Length: 10}), "userns_options.uids"},
		"length 0":        {uids(&runtimeapi.IDMapping{HostId: 1000}), "userns_options.uids"},
		"no root":         {uids(&runtimeapi.IDMapping{HostId: 1000, ContainerId: 1, Length: 65536}), "userns_options.uids"},
		"overflow":        {uids(&runtimeapi.IDMapping{HostId: 1 << 31, Length: 1 << 31}), "userns_options.uids"},
		"the host's root": {uids(&runtimeapi.IDMapping{Length: 65536}), "userns_options.uids"},
		"other length":    {uids(&runtimeapi.IDMapping{HostId: 1000, Length: 10}), "userns_options"},
		"host's PID":      {func(ns *runtimeapi.NamespaceOption) { ns.Pid = runtimeapi.NamespaceMode_NODE }, "namespace_options.pid"},
		"host's IPC":      {func(ns *runtimeapi.NamespaceOption) { ns.Ipc = runtimeapi.NamespaceMode_NODE }, "namespace_options.ipc"},
		"70 KiB":          {uids(make([]*runtimeapi.IDMapping, 4096)...), "userns_options.uids"},
	} {
		t.Run(name, func(t *testing.T) { wantError(t, pod(row.change), codes.InvalidArgument, row.names) })
	}

	p := n.runPod("pod", userns(100_000, 100_000))
	mapped := func(uid, gid []*runtimeapi.IDMapping) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/vol", HostPath: n.LogDir, UidMappings: uid, GidMappings: gid}}
		}
	}
	for name, row := range map[string]struct {
		change func(*runtimeapi.ContainerConfig)
		code   codes.Code
		names  string
	}{
		"other user namespace": {security(func(s *securityContext) {
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: 1, UsernsOptions: &runtimeapi.UserNamespace{Uids: idsFrom(7000), Gids: idsFrom(7000)}}
		}), codes.InvalidArgument, "userns_options"},
		"the host's user namespace": {security(func(s *securityContext) {
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: 1, UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}}
		}), codes.InvalidArgument, "userns_options"},
		"user that is not in it":  {security(func(s *securityContext) { s.RunAsUser = id(65536) }), codes.InvalidArgument, "65536"},
		"group that is not in it": {security(func(s *securityContext) { s.SupplementalGroups = []int64{70000} }), codes.InvalidArgument, "70000"},
		"other mapping":           {mapped(idsFrom(7000), idsFrom(100_000)), codes.InvalidArgument, "uidMappings"},
		"one mapping":             {mapped(idsFrom(100_000), nil), codes.InvalidArgument, "gidMappings"},
		"file system without": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/vol", HostPath: "/proc/sys", UidMappings: idsFrom(100_000), GidMappings: idsFrom(100_000)}}
		}, codes.FailedPrecondition, "mounts[0].uidMappings"},
		"bidirectional": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/vol", HostPath: n.shared(t), Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
		}, codes.InvalidArgument, "propagation"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.tryCreate(p.containerConfig("c", forever, row.change))
			wantError(t, err, row.code, row.names)
		})
	}
	plain := n.runPod("plain")
	_, err := plain.tryCreate(plain.containerConfig("c", forever, mapped(idsFrom(100_000), idsFrom(100_000))))
	wantError(t, err, codes.InvalidArgument, "uidMappings", "user namespace")
}

// shared is a shared mount on the host, until the test ends.
func (n *node) shared(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "shared")
	err := errors.Join(os.Mkdir(dir, 0o755), unix.Mount("tmpfs", dir, "tmpfs", 0, ""), unix.Mount("", dir, "", unix.MS_SHARED, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// A pod survives its daemon: its containers are made as before, though the start closes the run directory.
func TestUserNamespaceAfterRestart(t *testing.T) {
	n := newNode(t)
	p := n.runPod("pod", userns(100_000, 100_000))
	created := p.create("created", forever)
	if err := n.Restart(n.context()); err != nil {
		t.Fatal(err)
	}
	created.start()
	if got, _ := p.output("new", "cat /proc/self/uid_map | tr -s ' '"); got != " 0 100000 65536\n" {
		t.Errorf("mapped %q", got)
	}
	if st := p.status(); st.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod is %v", st.GetState())
	}
}

// The bit of the kubelet: what the handlers can do.
func TestUserNamespaceFeatures(t *testing.T) {
	for name, flags := range handlers(t) {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, flags...)
			resp, err := n.Runtime.Status(n.context(), &runtimeapi.StatusRequest{})
			if err != nil {
				t.Fatal(err)
			}
			able := map[string]bool{}
			for _, h := range resp.GetRuntimeHandlers() {
				able[h.GetName()] = h.GetFeatures().GetUserNamespaces() && h.GetFeatures().GetRecursiveReadOnlyMounts()
			}
			if !able[""] || !able[name] {
				t.Errorf("handlers: %v", resp.GetRuntimeHandlers())
			}
			if f := resp.GetFeatures(); !f.GetUserNamespacesHostNetwork() || !f.GetMountOptions() || !f.GetSupplementalGroupsPolicy() {
				t.Errorf("features: %v", f)
			}
		})
	}
}
