package imageservice

import (
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func TestManifestAnnotations(t *testing.T) {
	needRoot(t)
	reg, s := newRegistry(t), open(t, testConfig(t))
	img := mutate.MediaType(imageOf(t, gzipLayer(t, file("f", "x"))), types.OCIManifestSchema1)
	reg.push(t, "a", "1", mutate.Annotations(img, map[string]string{"org.criu.checkpoint.container.name": "c"}).(v1.Image))
	got, err := s.ManifestAnnotations(pull(t, s, reg.host()+"/a:1"))
	if err != nil || got["org.criu.checkpoint.container.name"] != "c" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := s.ManifestAnnotations("none"); !errdefs.IsNotFound(err) {
		t.Errorf("an unknown image: %v", err)
	}
}
