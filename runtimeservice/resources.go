package runtimeservice

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// withResources is a copy of cc with the fields of change that are set put into
// its resources, and its JSON for the record. What the kubelet has asked for
// is reported back to it as it is, never as the kernel rounds it.
func withResources(cc *runtimeapi.ContainerConfig, change *runtimeapi.LinuxContainerResources) (*runtimeapi.ContainerConfig, []byte, error) {
	out := proto.CloneOf(cc)
	if out.Linux == nil {
		out.Linux = &runtimeapi.LinuxContainerConfig{}
	}
	if out.Linux.Resources == nil {
		out.Linux.Resources = &runtimeapi.LinuxContainerResources{}
	}
	to := out.Linux.Resources.ProtoReflect()
	change.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if !fd.IsMap() {
			to.Set(fd, v) // lists are replaced: a page size that is left out keeps no old limit
			return true
		}
		m := to.Mutable(fd).Map()
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			m.Set(k, v)
			return true
		})
		return true
	})
	b, err := protojson.Marshal(out)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding the config: %w", err)
	}
	return out, b, nil
}

// written is which limits of config an update has to write: those of change,
// and memory and swap together, for the limit of swap counts both. config has
// the change in it already.
func written(config *runtimeapi.ContainerConfig, change *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	if change.GetMemoryLimitInBytes() == 0 && change.GetMemorySwapLimitInBytes() == 0 {
		return change
	}
	out, all := proto.CloneOf(change), config.GetLinux().GetResources()
	out.MemoryLimitInBytes, out.MemorySwapLimitInBytes = all.GetMemoryLimitInBytes(), all.GetMemorySwapLimitInBytes()
	return out
}
