package runtimeservice

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/imageservice"
)

// refuseArchive refuses a checkpoint's archive, which other runtimes take as a
// container's image.
func refuseArchive(image string) error {
	if filepath.IsAbs(image) {
		return fmt.Errorf("image %q is a file; if it is a checkpoint, restoring is not supported: %w", image, errdefs.ErrInvalidArgument)
	}
	return nil
}

// refuseCheckpoint refuses an image that holds a checkpoint. Such an image has
// no program, so that of others no manifest is read.
func (s *containers) refuseCheckpoint(img imageservice.Image) error {
	if len(img.Config.Entrypoint)+len(img.Config.Cmd) > 0 {
		return nil
	}
	annotations, err := s.images.ManifestAnnotations(img.ID)
	if err != nil {
		return err
	}
	return refuseAnnotated(img.ID, annotations)
}

func refuseAnnotated(image string, annotations map[string]string) error {
	// checkpointctl's, and that of CRI-O before it.
	for _, key := range []string{"org.criu.checkpoint.container.name", "io.kubernetes.cri-o.annotations.checkpoint.name"} {
		if of, is := annotations[key]; is {
			return fmt.Errorf("image %s is a checkpoint of container %.64q, restoring is not supported: %w", image, of, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
