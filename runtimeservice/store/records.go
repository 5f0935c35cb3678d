package store

import (
	"encoding/json"
	"net/netip"

	"github.com/gantry-cri/gantry/runtimeservice/lifecycle"
)

// Pod is the record of a pod sandbox.
type Pod struct {
	State     lifecycle.Pod `json:"state"`
	BootID    string        `json:"bootID"`
	CreatedAt int64         `json:"createdAt"`
	Handler   string        `json:"handler"` // as requested; "" = the default
	// Runtime is the name of the handler that was taken: that of "" may become another.
	Runtime string          `json:"runtime,omitempty"`
	Config  json.RawMessage `json:"config"` // runtimeapi.PodSandboxConfig
	IPs     []netip.Addr    `json:"ips,omitempty"`
	// Cgroups that were made for this pod, because its cgroup_parent did not
	// exist, and that go with it.
	Cgroups []string `json:"cgroups,omitempty"`
	// Sized has the overhead and resources of the last UpdatePodSandboxResources, that message.
	Sized json.RawMessage `json:"sized,omitempty"`
	// SELinux labels of the pod's processes and files, whose level is its own. Absent without SELinux.
	ProcessLabel string `json:"processLabel,omitempty"`
	MountLabel   string `json:"mountLabel,omitempty"`
}

// Container is the record of a container.
type Container struct {
	State      lifecycle.Container `json:"state"`
	BootID     string              `json:"bootID"`
	Pod        string              `json:"pod"`
	CreatedAt  int64               `json:"createdAt"`
	StartedAt  int64               `json:"startedAt,omitempty"`
	FinishedAt int64               `json:"finishedAt,omitempty"`
	ExitCode   int32               `json:"exitCode,omitempty"`
	Reason     string              `json:"reason,omitempty"`
	Message    string              `json:"message,omitempty"`
	Config     json.RawMessage     `json:"config"` // runtimeapi.ContainerConfig
	ImageID    string              `json:"imageID"`
	ImageRef   string              `json:"imageRef"`
	ImageName  string              `json:"imageName"`
	Cgroup     string              `json:"cgroup"`
	StopSignal int                 `json:"stopSignal"`
	UID        uint32              `json:"uid"`
	GID        uint32              `json:"gid"`
	Groups     []uint32            `json:"groups,omitempty"`
	// Runtime is what the container is started with, whatever becomes of its handler. Absent in records of old.
	Runtime *Runtime `json:"runtime,omitempty"`
}

// Runtime is an OCI runtime as a handler named it when a container was made.
type Runtime struct {
	Handler string   `json:"handler"`
	Path    string   `json:"path"`
	Root    string   `json:"root"`
	Options []string `json:"options,omitempty"`
	Systemd bool     `json:"systemd,omitempty"`
}
