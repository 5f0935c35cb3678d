package ocispec

import (
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// testNode is a usual node: cgroup v2 without systemd, everything there.
func testNode() Node {
	return Node{
		Cgroup2: true, OCIVersion: "1.2.0", MinOOMScoreAdj: -1000, Hugetlb: true,
		SwapAccounting: true, Pids: true, RecursiveReadOnly: true,
	}
}

// testPod is a pod with its own network and one PID namespace per container.
func testPod() Pod {
	return Pod{
		ID: strings.Repeat("a", 64),
		Config: &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		}},
		Hostname: "web-0",
		NetNS:    "/run/gantry/pods/p/ns/net", IPCNS: "/run/gantry/pods/p/ns/ipc", UTSNS: "/run/gantry/pods/p/ns/uts",
		ShmDir: "/run/gantry/pods/p/shm", ResolvConf: "/run/gantry/pods/p/resolv.conf",
		HostnameFile: "/run/gantry/pods/p/hostname", HostsFile: "/run/gantry/pods/p/hosts",
	}
}

// testContainer runs the image's program as root.
func testContainer() Container {
	return Container{
		ID: strings.Repeat("c", 64),
		Config: &runtimeapi.ContainerConfig{
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			}},
		},
		Image: imagespec.ImageConfig{
			Env:        []string{"PATH=/bin", "LANG=C.UTF-8"},
			Entrypoint: []string{"/bin/server"},
			Cmd:        []string{"--port", "80"},
		},
		Rootfs:      "/run/gantry/rootfs/c",
		User:        User{Groups: []uint32{0}},
		CgroupsPath: "/kubepods/pod1/c",
	}
}

func security(c Container) *runtimeapi.LinuxContainerSecurityContext {
	return c.Config.Linux.SecurityContext
}

func mountAt(s *specs.Spec, target string) (m specs.Mount, index int) {
	index = -1
	for i, x := range s.Mounts {
		if x.Destination == target {
			m, index = x, i
		}
	}
	return m, index
}
