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
		doc, err := Parse("", []byte(body))
		if err != nil || doc.Manifest == nil || doc.Index != nil {
			t.Errorf("%s: %v, %v", name, doc, err)
		}
	}
	doc, err := Parse("", []byte(`{"schemaVersion":2,"manifests":[]}`))
	if err != nil || doc.Index == nil || doc.Manifest != nil {
		t.Errorf("index: %v, %v", doc, err)
	}
	withURL := strings.Replace(layer, `"size"`, `"urls":["http://169.254.169.254/"],"data":"eA==","size"`, 1)
	if doc, err = Parse("", []byte(imageManifest(config, withURL))); err != nil || doc.Manifest.Layers[0].URLs != nil || doc.Manifest.Layers[0].Data != nil {
		t.Errorf("urls and data are kept: %v, %v", doc, err)
	}
}

func TestParseRefuses(t *testing.T) {
	good := imageManifest(config, layer)
	for name, c := range map[string]struct{ mediaType, body, want string }{
		"nothing":                {"", ``, "EOF"},
		"not JSON":               {"", `<html>`, "invalid"},
		"byte order mark":        {"", "\ufeff" + good, "invalid"},
		"cut":                    {"", good[:len(good)-5], "EOF"},
		"two documents":          {"", good + good, "follows"},
		"key twice":              {"", strings.Replace(good, `"layers"`, `"layers":[],"layers"`, 1), "twice"},
		"key twice, other case":  {"", strings.Replace(good, `"layers"`, `"Layers":[],"layers"`, 1), "twice"},
		"deep":                   {"", `{"a":` + strings.Repeat("[", 100000), "deeper"},
		"schema 1":               {"", `{"schemaVersion":1,"fsLayers":[]}`, "schema 1"},
		"schema 1 in disguise":   {"", strings.Replace(good, `"layers"`, `"fsLayers":[],"layers"`, 1), "schema 1"},
		"schema 3":               {"", strings.Replace(good, `:2,`, `:3,`, 1), "schemaVersion 3"},
		"layers and manifests":   {"", strings.Replace(good, `"layers"`, `"manifests":[],"layers"`, 1), "both"},
		"index called manifest":  {ocispec.MediaTypeImageManifest, `{"schemaVersion":2,"manifests":[]}`, "fields"},
		"registry disagrees":     {DockerManifest, good, "registry"},
		"unknown type":           {"", strings.Replace(good, ocispec.MediaTypeImageManifest, "x/y", 1), "x/y"},
		"no layers field":        {"", `{"schemaVersion":2,"config":` + config + `}`, "without"},
		"no layers":              {"", imageManifest(config, ""), "no layers"},
		"too many layers":        {"", imageManifest(config, strings.Repeat(layer+",", MaxLayers)+layer), "501"},
		"artifact":               {"", imageManifest(desc("application/vnd.cncf.helm.config.v1+json", d1, 1), layer), "artifact"},
		"foreign layer":          {"", imageManifest(config, desc("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", d2, 1)), "foreign"},
		"nondistributable layer": {"", imageManifest(config, desc("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", d2, 1)), "foreign"},
		"encrypted layer":        {"", imageManifest(config, desc("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", d2, 1)), "encrypted"},
		"layer of xz":            {"", imageManifest(config, desc("application/vnd.oci.image.layer.v1.tar+xz", d2, 1)), "layer type"},
		"size 0":                 {"", imageManifest(config, desc(ocispec.MediaTypeImageLayer, d2, 0)), "impossible size"},
		"negative size":          {"", imageManifest(config, desc(ocispec.MediaTypeImageLayer, d2, -1)), "impossible size"},
		"enormous size":          {"", imageManifest(config, strings.Replace(layer, `:20}`, `:9223372036854775807}`, 1)), "impossible size"},
		"size beyond integers":   {"", imageManifest(config, strings.Replace(layer, `:20}`, `:1e99}`, 1)), "number"},
		"large config":           {"", imageManifest(desc(ocispec.MediaTypeImageConfig, d1, MaxSize+1), layer), "impossible size"},
		"short digest":           {"", imageManifest(config, desc(ocispec.MediaTypeImageLayer, "sha256:short", 1)), "digest"},
		"digest with a path":     {"", imageManifest(config, desc(ocispec.MediaTypeImageLayer, "sha256:../"+d2[10:], 1)), "digest"},
		"sha512":                 {"", imageManifest(config, desc(ocispec.MediaTypeImageLayer, "sha512:"+strings.Repeat("1", 128), 1)), "sha256"},
		"one digest, two sizes":  {"", imageManifest(config, layer+","+strings.Replace(layer, ":20}", ":21}", 1)), "sizes"},
		"config as layer":        {"", imageManifest(config, desc(ocispec.MediaTypeImageLayer, d1, 10)), "config"},
	} {
		if doc, err := Parse(c.mediaType, []byte(c.body)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", name, doc, err)
		}
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
		"key twice":        strings.Replace(good, `"os"`, `"OS":"linux","os"`, 1),
		"large":            `"` + strings.Repeat("x", MaxSize) + `"`,
	} {
		if c, err := ParseConfig([]byte(body), 2, want); err == nil {
			t.Errorf("%s: %v", name, c)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("", []byte(imageManifest(config, layer)))
	f.Add(ocispec.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[`+desc(ocispec.MediaTypeImageManifest, d1, 3)+`]}`))
	f.Fuzz(func(t *testing.T, mediaType string, body []byte) {
		doc, err := Parse(mediaType, body)
		if err != nil {
			return
		}
		if (doc.Manifest == nil) == (doc.Index == nil) {
			t.Fatal("neither or both")
		}
		list := doc.Index
		if doc.Manifest != nil {
			if list = append(doc.Manifest.Layers, doc.Manifest.Config); len(list) < 2 {
				t.Fatal("image without layers")
			}
		}
		for _, d := range list {
			if CheckDigest(d.Digest) != nil || d.Size <= 0 || len(d.URLs) > 0 {
				t.Fatalf("let through: %v", d)
			}
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"rootfs":{"type":"layers","diff_ids":["` + d2 + `"]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := ParseConfig(body, 1, platforms.All)
		if err == nil && (len(c.ChainIDs) != 1 || CheckDigest(c.RootFS.DiffIDs[0]) != nil) {
			t.Fatalf("let through: %v", c)
		}
	})
}
