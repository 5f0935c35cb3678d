package manifest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	d1 = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	d2 = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
	d3 = "sha256:3333333333333333333333333333333333333333333333333333333333333333"
)

func desc(mediaType, digest string, size int) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, digest, size)
}

var (
	limits = Limits{Size: 4 << 20, Layers: 500}
	config = desc(ocispec.MediaTypeImageConfig, d1, 10)
	layer  = desc(ocispec.MediaTypeImageLayerGzip, d2, 20)
)

func imageManifest(config, layers string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, ocispec.MediaTypeImageManifest, config, layers)
}

func TestParse(t *testing.T) {
	for name, body := range map[string]string{
		"OCI":           imageManifest(config, layer),
		"no media type": `{"schemaVersion":2,"config":` + config + `,"layers":[` + layer + `]}`,
		"Docker": `{"schemaVersion":2,"mediaType":"` + DockerManifest + `","config":` + desc("application/vnd.docker.container.image.v1+json", d1, 1) +
			`,"layers":[` + desc("application/vnd.docker.image.rootfs.diff.tar.gzip", d2, 1) + `]}`,
		"each compression":                imageManifest(config, desc(ocispec.MediaTypeImageLayer, d2, 1)+","+desc(ocispec.MediaTypeImageLayerZstd, d3, 1)),
		"annotations that differ in case": `{"schemaVersion":2,"annotations":{"a":"1","A":"2"},"config":` + config + `,"layers":[` + layer + `]}`,
	} {
		doc, err := Parse("", []byte(body), limits)
		if err != nil || doc.Manifest == nil || doc.Index != nil {
			t.Errorf("%s: %v, %v", name, doc, err)
		}
	}
	doc, err := Parse("", []byte(`{"schemaVersion":2,"manifests":[]}`), limits)
	if err != nil || doc.Index == nil || doc.Manifest != nil {
		t.Errorf("index: %v, %v", doc, err)
	}
	withData := strings.Replace(desc(ocispec.MediaTypeImageLayer, digest.FromString("x").String(), 1), `"size"`, `"urls":[],"data":"eA==","size"`, 1)
	if doc, err = Parse("", []byte(imageManifest(config, withData)), limits); err != nil || doc.Manifest.Layers[0].Data != nil {
		t.Errorf("right data: %v, %v", doc, err)
	}
}

func TestSelect(t *testing.T) {
	arm64 := platforms.Only(ocispec.Platform{OS: "linux", Architecture: "arm64"})
	arm := platforms.Only(ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"})
	entry := func(name, platform string) ocispec.Descriptor {
		p := platforms.MustParse(platform)
		return ocispec.Descriptor{Digest: digest.Digest(name), Platform: &p}
	}
	index := []ocispec.Descriptor{
		{Digest: "attestation", Platform: &ocispec.Platform{OS: "unknown", Architecture: "unknown"}},
		entry("windows", "windows/arm64"), entry("v6", "linux/arm/v6"), entry("v7", "linux/arm/v7"), entry("v5", "linux/arm/v5"), entry("arm64", "linux/arm64"),
	}
	for want, matcher := range map[digest.Digest]platforms.MatchComparer{"arm64": arm64, "v7": arm} {
		if got, err := Select(index, matcher); err != nil || got.Digest != want {
			t.Errorf("%s: %v, %v", want, got, err)
		}
	}
	if got, err := Select(index[:3], arm); err != nil || got.Digest != "v6" {
		t.Errorf("arm v7 runs v6: %v, %v", got, err)
	}
	_, err := Select(index[:3], platforms.Only(ocispec.Platform{OS: "linux", Architecture: "s390x"}))
	if err == nil || !strings.Contains(err.Error(), "linux/arm/v6") || strings.Contains(err.Error(), "unknown") {
		t.Errorf("platforms that there are: %v", err)
	}
}

func TestParseConfig(t *testing.T) {
	want := platforms.Only(ocispec.Platform{OS: "linux", Architecture: "amd64"})
	good := `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + d2 + `","` + d3 + `"]}}`
	c, err := ParseConfig([]byte(good), 2, want)
	if err != nil || len(c.ChainIDs) != 2 || c.ChainIDs[0] != d2 || c.RootFS.DiffIDs[1] != d3 {
		t.Errorf("%v, %v", c, err)
	}
	for name, body := range map[string]string{
		"other platform":   strings.Replace(good, "amd64", "s390x", 1),
		"rootfs type":      strings.Replace(good, `"layers"`, `"x"`, 1),
		"too few diff_ids": strings.Replace(good, `,"`+d3+`"`, "", 1),
		"diff_id":          strings.Replace(good, d3, "sha256:x", 1),
	} {
		if c, err := ParseConfig([]byte(body), 2, want); err == nil {
			t.Errorf("%s: %v", name, c)
		}
	}
}
