package crash

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/audit"
	"github.com/gantry-cri/gantry/test/images"
)

type podChange func(*runtimeapi.PodSandboxConfig)

func hostPort(c *runtimeapi.PodSandboxConfig) {
	c.Annotations = map[string]string{audit.HostPorts: "1"}
	c.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, HostPort: 18080, ContainerPort: 80}}
}

func sharedPID(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
}

func userNamespace(c *runtimeapi.PodSandboxConfig) {
	ids := []*runtimeapi.IDMapping{{HostId: 100_000, Length: 65536}}
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
}

func hostNetwork(c *runtimeapi.PodSandboxConfig) {
	c.Hostname = "" // the node's
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
}

func bandwidth(c *runtimeapi.PodSandboxConfig) {
	c.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "1G", "kubernetes.io/ingress-bandwidth": "1G"}
}

func terminal(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true }

func stdinOnce(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }

func imageVolume(c *runtimeapi.ContainerConfig) {
	c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/volume", Image: &runtimeapi.ImageSpec{Image: images.Busybox}, Readonly: true}}
}
