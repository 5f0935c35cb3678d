package archive

import (
	"fmt"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
)

// dockerSave is a docker-archive with one image of two equal layers.
func dockerSave(t testing.TB) []any {
	l := newLayout(t, "docker")
	hex := digest.FromBytes(l.config).Encoded()
	return []any{
		"1/layer.tar", l.layer, "1/VERSION", "1.0", symlink("2/layer.tar", "../1/layer.tar"), hex + ".json", l.config,
		"manifest.json", fmt.Sprintf(`[{"Config":"%s.json","RepoTags":["busybox:1","r.example/b:2"],"Layers":["1/layer.tar","2/layer.tar"],"LayerSources":{"x":1}}]`, hex),
		"repositories", "{}",
	}
}

func TestDockerArchive(t *testing.T) {
	a := mustRead(t, tarOf(t, dockerSave(t)...))
	if len(a.Images) != 1 {
		t.Fatalf("%d images", len(a.Images))
	}
	img := a.Images[0]
	if !slices.Equal(img.Names, []string{"busybox:1", "r.example/b:2"}) || img.Top.Digest != "" || img.Digest != digest.FromBytes(img.Body) || len(img.Manifest.Layers) != 2 || img.Manifest.Layers[0].Digest != img.Manifest.Layers[1].Digest {
		t.Errorf("%+v", img)
	}
	again := mustRead(t, tarOf(t, dockerSave(t)...))
	if again.Images[0].Digest != img.Digest {
		t.Error("the manifest that is made differs from time to time")
	}
}

// What podman and skopeo write: the layers are in the root, and for each there
// is a link as older Docker has it, which manifest.json does not name.
func TestPodmanArchive(t *testing.T) {
	l := newLayout(t, "podman")
	config, layer := digest.FromBytes(l.config).Encoded(), digest.FromBytes(l.layer).Encoded()
	a := mustRead(t, tarOf(t,
		layer+".tar", l.layer, config+".json", l.config,
		symlink("1/layer.tar", "../"+layer+".tar"), "1/VERSION", "1.0", "1/json", "{}",
		"manifest.json", fmt.Sprintf(`[{"Config":"%s.json","RepoTags":["localhost/x:1"],"Layers":["%s.tar","1/layer.tar"]}]`, config, layer),
		"repositories", `{"localhost/x":{"1":"1"}}`))
	if img := a.Images[0]; len(a.Images) != 1 || !slices.Equal(img.Names, []string{"localhost/x:1"}) ||
		img.Manifest.Layers[0].Digest.Encoded() != layer || img.Manifest.Layers[1].Digest.Encoded() != layer {
		t.Errorf("%+v", a.Images)
	}
}
