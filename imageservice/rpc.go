package imageservice

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/imageservice/internal/meta"
)

// PullImage fetches an image. When the registry cannot be reached the error's
// text begins with RegistryUnavailable.
func (s *Service) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, fmt.Errorf("image of PullImage is empty: %w", errdefs.ErrInvalidArgument)
	}
	if h := req.GetImage().GetRuntimeHandler(); h != "" && !slices.Contains(s.cfg.Handlers, h) {
		return nil, fmt.Errorf("runtime_handler %q of image %s is not configured: %w", h, ref, errdefs.ErrInvalidArgument)
	}
	img, err := s.pullOnce(ctx, ref, req.GetAuth())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
}

// ListImages lists all images, or the one that the filter names.
func (s *Service) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: s.list(req.GetFilter())}, nil
}

// StreamImages is ListImages in messages of a bounded size.
func (s *Service) StreamImages(req *runtimeapi.StreamImagesRequest, stream runtimeapi.ImageService_StreamImagesServer) error {
	for part := range slices.Chunk(s.list(req.GetFilter()), 100) {
		if err := stream.Send(&runtimeapi.StreamImagesResponse{Images: part}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) list(filter *runtimeapi.ImageFilter) []*runtimeapi.Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if ref := filter.GetImage().GetImage(); ref != "" {
		img, err := s.find(ref)
		if err != nil {
			return nil
		}
		return []*runtimeapi.Image{img.cri()}
	}
	list := make([]*runtimeapi.Image, 0, len(s.images))
	for _, img := range s.images {
		list = append(list, img.cri())
	}
	slices.SortFunc(list, func(a, b *runtimeapi.Image) int { return strings.Compare(a.Id, b.Id) })
	return list
}

// cri is the image as the CRI describes one.
func (img *image) cri() *runtimeapi.Image {
	out := &runtimeapi.Image{
		Id:          img.ID,
		RepoTags:    img.RepoTags,
		RepoDigests: img.RepoDigests,
		Size:        img.Size,
		Spec:        &runtimeapi.ImageSpec{Image: img.ID},
		Pinned:      img.Pinned,
	}
	// The kubelet asks either of them for runAsNonRoot; a group is not its
	// matter.
	user, _, _ := strings.Cut(img.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &runtimeapi.Int64Value{Value: uid}
	} else {
		out.Username = user
	}
	return out
}

// ImageStatus describes one image; no image and no error when it is absent.
func (s *Service) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, fmt.Errorf("image of ImageStatus is empty: %w", errdefs.ErrInvalidArgument)
	}
	s.mu.RLock()
	img, err := s.find(ref)
	s.mu.RUnlock()
	if errdefs.IsNotFound(err) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: img.cri()}
	if req.GetVerbose() {
		about := map[string]any{"layers": img.record.Layers}
		if img.artifact {
			about["manifest"] = json.RawMessage(img.raw)
		} else {
			about["imageSpec"] = json.RawMessage(img.raw)
			about["chainID"] = img.config.ChainIDs[len(img.config.ChainIDs)-1]
		}
		info, err := json.Marshal(about)
		if err != nil {
			return nil, fmt.Errorf("describing image %s: %w", img.ID, err)
		}
		resp.Info = map[string]string{"info": string(info)}
	}
	return resp, nil
}

// RemoveImage removes an image under all its names. Absent is no error. Its
// layers stay on disk while a container uses them.
func (s *Service) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, fmt.Errorf("image of RemoveImage is empty: %w", errdefs.ErrInvalidArgument)
	}
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.Lock()
	img, err := s.find(ref)
	if err != nil {
		s.mu.Unlock()
		if errdefs.IsNotFound(err) {
			return &runtimeapi.RemoveImageResponse{}, nil
		}
		return nil, err
	}
	change := meta.Change{DropImage: &img.record}
	for name, id := range s.names {
		if id == img.ID {
			change.DropNames = append(change.DropNames, name)
			delete(s.names, name)
		}
	}
	delete(s.images, img.ID)
	s.mu.Unlock()
	if err := s.meta.Update(change); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, name := range change.DropNames {
			s.names[name] = img.ID
		}
		s.put(img)
		return nil, fmt.Errorf("removing image %s: %w", img.ID, err)
	}
	s.release(img.layers...)
	klog.FromContext(ctx).Info("Removed image", "imageID", img.ID, "names", change.DropNames, "bytes", img.Size)
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo tells what images and containers use, from memory.
func (s *Service) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	written := s.written()
	s.mu.RLock()
	defer s.mu.RUnlock()
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{s.filesystem(s.used)},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{s.filesystem(written)},
	}, nil
}

func (s *Service) filesystem(u Usage) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: s.Mountpoint()},
		UsedBytes:  &runtimeapi.UInt64Value{Value: u.Bytes},
		InodesUsed: &runtimeapi.UInt64Value{Value: u.Inodes},
	}
}
