package cri

import (
	"cmp"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// validate refuses a request that lacks what every service must have, or whose
// names and paths could be taken for something else than they are. What a
// field means, and whether this node can do it, the service checks. Labels and
// annotations are the client's.
//
// The error is errdefs.ErrInvalidArgument and names the field as the CRI does.
func validate(req any) error {
	err := validatePod(req)
	if err == nil {
		err = validateContainer(req)
	}
	if err == nil {
		err = validateImage(req)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func validatePod(req any) error {
	switch r := req.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		return cmp.Or(
			podConfig("config", r.GetConfig()),
			optional(name, "runtime_handler", r.GetRuntimeHandler()))
	case *runtimeapi.StopPodSandboxRequest:
		return id("pod_sandbox_id", r.GetPodSandboxId())
	case *runtimeapi.RemovePodSandboxRequest:
		return id("pod_sandbox_id", r.GetPodSandboxId())
	case *runtimeapi.PodSandboxStatusRequest:
		return id("pod_sandbox_id", r.GetPodSandboxId())
	case *runtimeapi.PodSandboxStatsRequest:
		return id("pod_sandbox_id", r.GetPodSandboxId())
	case *runtimeapi.UpdatePodSandboxResourcesRequest:
		return id("pod_sandbox_id", r.GetPodSandboxId())
	case *runtimeapi.PortForwardRequest:
		return cmp.Or(id("pod_sandbox_id", r.GetPodSandboxId()), ports("port", r.GetPort()))
	case *runtimeapi.CheckpointPodRequest:
		if err := cmp.Or(id("pod_sandbox_id", r.GetPodSandboxId()), absolute("output_path", r.GetOutputPath())); err != nil {
			return err
		}
		for i, c := range r.GetContainerIds() {
			if err := id(index("container_ids", i), c); err != nil {
				return err
			}
		}
	case *runtimeapi.RestorePodRequest:
		if err := cmp.Or(
			absolute("checkpoint_path", r.GetCheckpointPath()),
			podConfig("config", r.GetConfig()),
			optional(name, "runtime_handler", r.GetRuntimeHandler()),
		); err != nil {
			return err
		}
		for i, c := range r.GetContainerConfigs() {
			if err := containerConfig(index("container_configs", i), c); err != nil {
				return err
			}
		}
	}
	return nil
}

func validateContainer(req any) error {
	switch r := req.(type) {
	case *runtimeapi.CreateContainerRequest:
		return cmp.Or(
			id("pod_sandbox_id", r.GetPodSandboxId()),
			containerConfig("config", r.GetConfig()),
			sandboxConfig("sandbox_config", r.GetSandboxConfig()))
	case *runtimeapi.StartContainerRequest:
		return id("container_id", r.GetContainerId())
	case *runtimeapi.StopContainerRequest:
		return cmp.Or(id("container_id", r.GetContainerId()), notNegative("timeout", r.GetTimeout()))
	case *runtimeapi.RemoveContainerRequest:
		return id("container_id", r.GetContainerId())
	case *runtimeapi.ContainerStatusRequest:
		return id("container_id", r.GetContainerId())
	case *runtimeapi.ContainerStatsRequest:
		return id("container_id", r.GetContainerId())
	case *runtimeapi.UpdateContainerResourcesRequest:
		return id("container_id", r.GetContainerId())
	case *runtimeapi.ReopenContainerLogRequest:
		return id("container_id", r.GetContainerId())
	case *runtimeapi.CheckpointContainerRequest:
		return cmp.Or(
			id("container_id", r.GetContainerId()),
			absolute("location", r.GetLocation()),
			notNegative("timeout", r.GetTimeout()))
	case *runtimeapi.ExecSyncRequest:
		return cmp.Or(
			id("container_id", r.GetContainerId()),
			command("cmd", r.GetCmd()),
			notNegative("timeout", r.GetTimeout()))
	case *runtimeapi.ExecRequest:
		return cmp.Or(
			id("container_id", r.GetContainerId()),
			command("cmd", r.GetCmd()),
			streams(r.GetTty(), r.GetStdin(), r.GetStdout(), r.GetStderr()))
	case *runtimeapi.AttachRequest:
		return cmp.Or(
			id("container_id", r.GetContainerId()),
			streams(r.GetTty(), r.GetStdin(), r.GetStdout(), r.GetStderr()))
	}
	return nil
}

func validateImage(req any) error {
	switch r := req.(type) {
	case *runtimeapi.PullImageRequest:
		return cmp.Or(image("image", r.GetImage()), sandboxConfig("sandbox_config", r.GetSandboxConfig()))
	case *runtimeapi.ImageStatusRequest:
		return image("image", r.GetImage())
	case *runtimeapi.RemoveImageRequest:
		return image("image", r.GetImage())
	}
	return nil
}

func podConfig(field string, c *runtimeapi.PodSandboxConfig) error {
	if c == nil {
		return missing(field)
	}
	m := c.GetMetadata()
	if m == nil {
		return missing(field + ".metadata")
	}
	return cmp.Or(
		name(field+".metadata.name", m.GetName()),
		name(field+".metadata.namespace", m.GetNamespace()),
		optional(name, field+".metadata.uid", m.GetUid()),
		optional(hostname, field+".hostname", c.GetHostname()),
		optional(absolute, field+".log_directory", c.GetLogDirectory()))
}

// sandboxConfig is a pod's config in a request that is not about the pod; clients may leave it out.
func sandboxConfig(field string, c *runtimeapi.PodSandboxConfig) error {
	if c == nil {
		return nil
	}
	m := c.GetMetadata()
	return cmp.Or(
		optional(name, field+".metadata.name", m.GetName()),
		optional(name, field+".metadata.namespace", m.GetNamespace()),
		optional(name, field+".metadata.uid", m.GetUid()),
		optional(absolute, field+".log_directory", c.GetLogDirectory()))
}

func containerConfig(field string, c *runtimeapi.ContainerConfig) error {
	if c == nil {
		return missing(field)
	}
	if c.GetMetadata() == nil {
		return missing(field + ".metadata")
	}
	return cmp.Or(
		name(field+".metadata.name", c.GetMetadata().GetName()),
		image(field+".image", c.GetImage()),
		optional(relative, field+".log_path", c.GetLogPath()))
}
