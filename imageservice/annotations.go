package imageservice

import (
	"encoding/json"
	"fmt"
)

// ManifestAnnotations returns the annotations of an image's manifest, read from
// the disk. ErrNotFound when there is no such image.
func (s *Service) ManifestAnnotations(imageID string) (map[string]string, error) {
	s.mu.RLock()
	img, err := s.find(imageID)
	s.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	body, err := s.meta.Content(img.record.Manifest)
	if err != nil {
		return nil, fmt.Errorf("manifest of image %s: %w", imageID, err)
	}
	var m struct{ Annotations map[string]string }
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("manifest of image %s: %w", imageID, err)
	}
	return m.Annotations, nil
}
