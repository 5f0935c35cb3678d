package runtimeservice

import (
	"context"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxBatch is about how many bytes one message of a streamed list may have: a
// client that has set no limit of its own takes 4 MiB. An item that is larger
// goes alone.
const maxBatch = 1 << 20

// batches sends items, each once, in messages of at least one item and at most
// maxBatch bytes, until ctx ends. The items are a snapshot: nothing is locked
// while a slow client is waited for.
func batches[T proto.Message](ctx context.Context, items []T, send func([]T) error) error {
	for len(items) > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, size := 1, proto.Size(items[0])
		for ; n < len(items); n++ {
			if size += proto.Size(items[n]); size > maxBatch {
				break
			}
		}
		if err := send(items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// StreamPodSandboxes is ListPodSandbox in messages of a bounded size.
func (s *pods) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest, stream runtimeapi.RuntimeService_StreamPodSandboxesServer) error {
	all, err := s.ListPodSandbox(stream.Context(), &runtimeapi.ListPodSandboxRequest{Filter: req.GetFilter()})
	if err != nil {
		return err
	}
	return batches(stream.Context(), all.GetItems(), func(part []*runtimeapi.PodSandbox) error {
		return stream.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: part})
	})
}

// StreamContainers is ListContainers in messages of a bounded size.
func (s *containers) StreamContainers(req *runtimeapi.StreamContainersRequest, stream runtimeapi.RuntimeService_StreamContainersServer) error {
	all, err := s.ListContainers(stream.Context(), &runtimeapi.ListContainersRequest{Filter: req.GetFilter()})
	if err != nil {
		return err
	}
	return batches(stream.Context(), all.GetContainers(), func(part []*runtimeapi.Container) error {
		return stream.Send(&runtimeapi.StreamContainersResponse{Containers: part})
	})
}

// StreamContainerStats is ListContainerStats in messages of a bounded size.
func (s *stats) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest, stream runtimeapi.RuntimeService_StreamContainerStatsServer) error {
	all, err := s.ListContainerStats(stream.Context(), &runtimeapi.ListContainerStatsRequest{Filter: req.GetFilter()})
	if err != nil {
		return err
	}
	return batches(stream.Context(), all.GetStats(), func(part []*runtimeapi.ContainerStats) error {
		return stream.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: part})
	})
}

// StreamPodSandboxStats is ListPodSandboxStats in messages of a bounded size.
func (s *stats) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest, stream runtimeapi.RuntimeService_StreamPodSandboxStatsServer) error {
	all, err := s.ListPodSandboxStats(stream.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: req.GetFilter()})
	if err != nil {
		return err
	}
	return batches(stream.Context(), all.GetStats(), func(part []*runtimeapi.PodSandboxStats) error {
		return stream.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: part})
	})
}
