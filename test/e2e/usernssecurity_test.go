package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSecurityUserNamespaces is the cases of the catalogue about pods with a user namespace.
func TestSecurityUserNamespaces(t *testing.T) {
	n := newNode(t)
	for id, test := range map[string]func(n *node){
		"CVE-2021-41103":    closedToOthers,
		"CVE-2025-47291":    limitsHold,
		"2.6-userns-device": deviceOfTheRequest,
	} {
		t.Run(id, func(t *testing.T) { test(&node{Instance: n.Instance, t: t}) })
	}
}

// closedToOthers: the run directory lets pass, and what lies below it does not: neither a user of the host nor the root
// of another pod reaches a root file system, or anything else.
func closedToOthers(n *node) {
	a, b := n.runPod("a", userns(100_000, 100_000)), n.runPod("b", userns(300_000, 300_000))
	own, plain := a.run("own", forever), n.runPod("plain").run("plain", forever)
	run := filepath.Join(n.Dir, "run")
	at := func(c *container) string { return filepath.Join(run, "rootfs", c.id, "rootfs/bin/busybox") }
	as := func(id uint32, path string) error {
		cmd := exec.Command("/usr/bin/test", "-e", path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
		return cmd.Run()
	}
	if err := as(100_000, at(own)); err != nil {
		n.t.Errorf("the pod's root does not reach its own root file system: %v", err)
	}
	_ = b
	for _, user := range []uint32{1000, 300_000} {
		for _, c := range []*container{own, plain} {
			if as(user, at(c)) == nil {
				n.t.Errorf("user %d reaches the root file system of container %s", user, c.name)
			}
		}
	}
	// All that there is, but for the program that every pod init is.
	err := filepath.WalkDir(n.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it has ended meanwhile
		}
		if path == n.LogDir || path == filepath.Join(run, "podinit") || d.Name() == "rootfs" && filepath.Dir(path) != run {
			return fs.SkipDir
		}
		rel := strings.TrimPrefix(path, n.Dir)
		for _, dir := range []string{"/run/rootfs/", "/run/pods/", "/run/containers/", "/run/runtimes/", "/run/supervisor/", "/root/"} {
			inside := strings.HasPrefix(rel, dir) && (dir != "/run/rootfs/" || filepath.Dir(path) != filepath.Join(run, "rootfs"))
			if inside && as(300_000, path) == nil {
				n.t.Errorf("another pod's root reaches %s", path)
			}
		}
		if strings.Count(rel, "/") > 4 {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		n.t.Error(err)
	}
}

// limitsHold: the container's processes are in its cgroup, and its limit of memory kills.
func limitsHold(n *node) {
	p := n.runPod("limited", userns(100_000, 100_000), ownCgroup("userns-oom"))
	c := p.run("member", forever, limited)
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.pid()))
	if err != nil || !strings.Contains(string(body), c.id) {
		n.t.Errorf("cgroups of the process: %s, %v", body, err)
	}
	p.run("hog", "exec "+hog, limited).wantEnd(137, "OOMKilled")
}

// deviceOfTheRequest: an OCI runtime would mount what the host has at the container's path.
func deviceOfTheRequest(n *node) {
	p := n.runPod("device", userns(100_000, 100_000))
	got, _ := p.output("c", "stat -c %t:%T /dev/full-too /dev/null-too", func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/full", ContainerPath: "/dev/full-too", Permissions: "rw"}, {HostPath: "/dev/zero", ContainerPath: "/dev/null-too", Permissions: "r"}}
	})
	if got != "1:7\n1:5\n" {
		n.t.Errorf("devices %q", got)
	}
	_, err := p.tryCreate(p.containerConfig("default", forever, func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/random", Permissions: "r"}}
	}))
	wantError(n.t, err, codes.InvalidArgument, "/dev/random")
}

// A pod with a user namespace is asked for until it is there, while the daemon is killed in the middle of making it.
func TestUserNamespaceKilled(t *testing.T) {
	n := newNode(t)
	config := n.podConfig("killed", userns(100_000, 100_000), sharedPID)
	made := make(chan string, 1)
	go func() {
		for t.Context().Err() == nil {
			resp, err := n.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
			if err == nil {
				made <- resp.GetPodSandboxId()
				return
			}
		}
	}()
	for i := range 6 {
		time.Sleep(time.Duration(3*i) * time.Millisecond)
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		// What it had begun to clone falls to us, and dies with it.
		n.eventually("the daemon's child is gone", func() bool {
			for _, pid := range children(t, os.Getpid()) {
				comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
				if name := strings.TrimSpace(string(comm)); name != "gantry" && name != "init" {
					continue
				}
				if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); got == 0 && err == nil {
					return false
				}
			}
			return true
		})
		if err := n.StartDaemon(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	p := &pod{node: n, config: config, id: <-made}
	if got, _ := p.output("c", "cat /proc/self/uid_map | tr -s ' '"); got != " 0 100000 65536\n" {
		t.Errorf("mapped %q", got)
	}
	if err := n.removePod(p.id); err != nil {
		t.Error(err)
	}
}
