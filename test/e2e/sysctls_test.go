package e2e

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func sysctls(list map[string]string) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = list }
}

func hostIPC(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Ipc = runtimeapi.NamespaceMode_NODE
}

// Sysctls count in all containers of the pod, in either way of writing, and the host keeps its own values.
func TestSysctls(t *testing.T) {
	n := newNode(t)
	asked := map[string]string{
		"kernel.shm_rmid_forced": "1", "kernel/msgmax": "12345", "fs.mqueue.msg_max": "9",
		"net.ipv4.ip_local_port_range": "3000\t4000", "net/ipv4/conf/all/log_martians": "1", "net.ipv4.ip_unprivileged_port_start": "99",
	}
	files := map[string]string{}
	before := map[string]string{}
	for name, value := range asked {
		file := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
		files[file], before[file] = value, read(t, file)
	}
	p := n.runPod("pod", sysctls(asked))
	c := p.run("c", forever)
	for file, want := range files {
		if got := strings.TrimSpace(c.exec("cat", file)); got != want {
			t.Errorf("%s is %q in the container, want %q", file, got, want)
		}
		if got := read(t, file); got != before[file] {
			t.Errorf("%s of the host became %q, it was %q", file, got, before[file])
		}
	}
	for name, bad := range map[string]struct {
		sysctl, value string
		change        func(*runtimeapi.PodSandboxConfig)
	}{
		"net on the host's network":             {"net.ipv4.ip_forward", "1", hostNetwork},
		"net with slashes":                      {"net/ipv4/ip_forward", "1", hostNetwork},
		"shm with the host's IPC":               {"kernel.shm_rmid_forced", "1", hostIPC},
		"mqueue with the host's IPC":            {"fs/mqueue/msg_max", "9", hostIPC},
		"one of the node":                       {"vm.swappiness", "1", hostIPC},
		"a second one in the value":             {"net.ipv4.ip_forward", "1+kernel.core_pattern=|/x", hostIPC},
		"a name that there is not":              {"net.ipv4.no_such_thing", "1", hostIPC},
		"a value that the kernel does not take": {"net.ipv4.ip_forward", "many", hostIPC},
	} {
		t.Run(name, func(t *testing.T) {
			config := n.podConfig("bad", sysctls(map[string]string{bad.sysctl: bad.value}), bad.change)
			_, err := n.Runtime.RunPodSandbox(n.context(), &runtimeapi.RunPodSandboxRequest{Config: config})
			wantError(t, err, codes.InvalidArgument, "sysctl", strings.FieldsFunc(bad.sysctl, func(r rune) bool { return r == '.' || r == '/' })[0])
		})
	}
}
