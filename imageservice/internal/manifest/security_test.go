package manifest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// refusals are documents that must not be taken, by the case of the catalogue
// that they belong to.
func refusals() map[string][]refusal {
	good := imageManifest(config, layer)
	of := func(mediaType, digest string, size int) string {
		return imageManifest(config, desc(mediaType, digest, size))
	}
	plain := ocispec.MediaTypeImageLayer
	swap := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	index := func(entries string) string { return `{"schemaVersion":2,"manifests":[` + entries + `]}` }
	return map[string][]refusal{
		"GHSA-5j5w-g665-5m35": {
			{"", swap(`"layers"`, `"manifests":[],"layers"`), "both"},
			{ocispec.MediaTypeImageManifest, swap(`"layers"`, `"manifests":[],"layers"`), "both"},
			{ocispec.MediaTypeImageIndex, swap(`"layers"`, `"manifests":[],"layers"`), "both"},
			{ocispec.MediaTypeImageManifest, index(""), "fields"},
			{ocispec.MediaTypeImageIndex, `{"schemaVersion":2,"config":` + config + `,"layers":[` + layer + `]}`, "fields"},
			{DockerManifest, good, "registry"},
			{"", `{"schemaVersion":1,"fsLayers":[]}`, "schema 1"},
			{"", swap(`"layers"`, `"fsLayers":[],"layers"`), "schema 1"},
			{"", swap(ocispec.MediaTypeImageManifest, dockerSchema1+"+prettyjws"), "schema 1"},
			{"", swap(`:2,`, `:3,`), "schemaVersion 3"},
		},
		"2.2-unknown-type": {
			{"", swap(`"mediaType":"`+ocispec.MediaTypeImageConfig+`",`, ""), "does not say"},
			{"", swap(ocispec.MediaTypeImageManifest, "x/y"), "x/y"},
			{"", of(plain+"+xz", d2, 1), `"application/vnd.oci.image.layer.v1.tar+xz"`},
			{"", of("text/html", d2, 1), `"text/html"`},
		},
		"CVE-2021-21285": {
			{"", ``, "EOF"}, {"", `null`, "schemaVersion"}, {"", `[]`, "array"}, {"", `<html>`, "invalid"},
			{"", swap(config, "null"), "without"}, {"", swap(`[`+layer+`]`, "null"), "without"},
			{"", swap(layer, "null"), "layer type"}, {"", swap(config, "[]"), "array"}, {"", swap(layer, `"x"`), "string"},
			{"", good[:len(good)-5], "EOF"},
			{"", imageManifest(config, strings.Repeat(layer+",", limits.Layers)+layer), "501"},
			{"", `{"schemaVersion":2,"config":` + config + `}`, "without"},
		},
		"CVE-2026-24054": {{"", imageManifest(config, ""), "no layers"}},
		"CVE-2024-3727": {
			{"", of(plain, "sha256:short", 1), "digest"}, {"", of(plain, "", 1), "digest"},
			{"", of(plain, "sha256:../"+d2[10:], 1), "digest"}, {"", of(plain, "sha256:../../x", 1), "digest"},
			{"", of(plain, "sha256:..?a=b", 1), "digest"}, {"", of(plain, "md5:"+d2[7:39], 1), "digest"},
			{"", of(plain, strings.ToUpper(d2), 1), "digest"}, {"", of(plain, "sha256:"+strings.Repeat("A", 64), 1), "digest"},
			{"", of(plain, d2[:len(d2)-1], 1), "digest"}, {"", of(plain, d2+"2", 1), "digest"},
			{"", imageManifest(desc(ocispec.MediaTypeImageConfig, "sha256:../../x", 1), layer), "digest"},
			{"", index(desc(ocispec.MediaTypeImageManifest, "sha256:../../x", 1)), "digest"},
			{"", index(desc(ocispec.MediaTypeImageManifest, d2+"\n", 1)), "digest"},
			{"", of(plain, "sha512:"+strings.Repeat("1", 128), 1), "sha256"},
			{"", of(plain, "sha384:"+strings.Repeat("1", 96), 1), "sha256"},
		},
		"2.2-sizes": {
			{"", of(plain, d2, 0), "impossible size"}, {"", of(plain, d2, -1), "impossible size"},
			{"", swap(`:20}`, `:9223372036854775807}`), "impossible size"}, {"", swap(`:20}`, `:1e99}`), "number"},
			{"", swap(`:20}`, `:`+strings.Repeat("9", 100_000)+`}`), "number"},
			{"", imageManifest(desc(ocispec.MediaTypeImageConfig, d1, int(limits.Size)+1), layer), "impossible size"},
			{"", index(desc(ocispec.MediaTypeImageManifest, d1, int(limits.Size)+1)), "impossible size"},
			{"", imageManifest(config, layer+","+strings.Replace(layer, ":20}", ":21}", 1)), "sizes"},
			{"", `"` + strings.Repeat("x", int(limits.Size)) + `"`, "more than"},
		},
		"2.2-data":            {{"", swap(`"size":20`, `"data":"eHg=","size":20`), "data"}},
		"2.2-config-as-layer": {{"", of(plain, d1, 10), "config"}},
		"2.2-ambiguous": {
			{"", "\ufeff" + good, "invalid"}, {"", good + good, "follows"}, {"", good + "x", "invalid"},
			{"", swap(`"layers"`, `"layers":[],"layers"`), "twice"},
			{"", swap(`"layers"`, `"Layers":[],"layers"`), "twice"},
			{"", swap(`"layers"`, "\"layer\u017f\":[],\"layers\""), "twice"}, // Go takes ſ for s
			{"", swap(`"digest"`, `"DIGEST":"","digest"`), "twice"},
			{"", swap(`"layers"`, `"\u006cayers":[],"layers"`), "twice"},
		},
		"2.2-depth": {
			{"", `{"a":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`, "deeper"},
			{"", strings.Repeat(`{"a":`, 100_000), "deeper"},
		},
		"2.2-entries": {
			{"", index(strings.Repeat(desc(ocispec.MediaTypeImageManifest, d1, 3)+",", 100_000) + desc(ocispec.MediaTypeImageManifest, d1, 3)), "more than"},
			{"", index(strings.Repeat(desc("x", d1, 3)+",", maxManifests) + desc("x", d1, 3)), "1025 manifests"},
		},
		"CVE-2020-15157": {
			{"", of("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", d2, 1), "foreign"},
			{"", of("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", d2, 1), "foreign"},
			{"", swap(`"size":20`, `"urls":["http://169.254.169.254/x"],"size":20`), "169.254.169.254"},
			{"", swap(`"size":10`, `"urls":["file:///etc/passwd"],"size":10`), "file:"},
		},
		"2.2-encrypted": {{"", of(plain+"+gzip+encrypted", d2, 1), "decrypted"}},
	}
}

type refusal struct{ mediaType, body, want string }

func TestSecurity(t *testing.T) {
	for id, list := range refusals() {
		t.Run(id, func(t *testing.T) {
			for _, c := range list {
				doc, err := Parse(c.mediaType, []byte(c.body), limits)
				if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 1000 {
					t.Errorf("%.300s: %v, %v; want %q", c.body, doc, err, c.want)
				}
			}
		})
	}
	t.Run("2.2-limits", func(t *testing.T) {
		if _, err := Parse("", []byte(imageManifest(config, layer)), Limits{}); err == nil {
			t.Error("no limits are no limit")
		}
	})
	t.Run("2.2-same-platform", func(t *testing.T) {
		p := ocispec.Platform{OS: "linux", Architecture: "amd64"}
		index := []ocispec.Descriptor{{Digest: d1, Platform: &p}, {Digest: d2, Platform: &p}}
		if got, err := Select(index, platforms.Only(p)); err != nil || got.Digest != d1 {
			t.Errorf("of two for one platform: %v, %v", got, err)
		}
	})
	t.Run("2.2-attestation", func(t *testing.T) {
		unknown := ocispec.Platform{OS: "unknown", Architecture: "unknown"}
		index := []ocispec.Descriptor{{Digest: d1, Platform: &unknown}, {Digest: d2, Platform: &unknown}}
		if got, err := Select(index, platforms.All); err == nil {
			t.Errorf("taken: %v", got)
		}
	})
	t.Run("2.2-config", testConfigs)
	t.Run("2.2-zstd-chunked", func(t *testing.T) {
		// What the annotations promise is not looked at: the digest counts.
		chunked := strings.Replace(desc(ocispec.MediaTypeImageLayerZstd, d2, 20), `"size"`,
			`"annotations":{"io.github.containers.zstd-chunked.manifest-checksum":"`+d3+`","io.github.containers.zstd-chunked.manifest-position":"9:9:9:9"},"size"`, 1)
		if doc, err := Parse("", []byte(imageManifest(config, chunked)), limits); err != nil || doc.Manifest.Layers[0].Digest != d2 {
			t.Errorf("%v, %v", doc, err)
		}
	})
	t.Run("2.2-artifact-names", testNames)
}

func testConfigs(t *testing.T) {
	want := platforms.Only(ocispec.Platform{OS: "linux", Architecture: "amd64"})
	good := `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + d2 + `","` + d3 + `"]}}`
	for name, c := range map[string]struct{ body, want string }{
		"other platform":       {strings.Replace(good, "amd64", "s390x", 1), "s390x"},
		"other variant":        {strings.Replace(good, `"amd64"`, `"arm64","variant":"v8"`, 1), "arm64"},
		"other system":         {strings.Replace(good, "linux", "windows", 1), "windows"},
		"rootfs type":          {strings.Replace(good, `"layers"`, `"x"`, 1), "rootfs"},
		"fewer diff_ids":       {strings.Replace(good, `,"`+d3+`"`, "", 1), "diff_ids"},
		"more diff_ids":        {strings.Replace(good, `"]`, `","`+d1+`"]`, 1), "diff_ids"},
		"no diff_ids":          {`{}`, "rootfs"},
		"diff_id with a path":  {strings.Replace(good, d3, "sha256:../../x", 1), "digest"},
		"diff_id of sha512":    {strings.Replace(good, d3, "sha512:"+strings.Repeat("1", 128), 1), "sha256"},
		"key twice":            {strings.Replace(good, `"os"`, `"OS":"linux","os"`, 1), "twice"},
		"diff_ids twice":       {strings.Replace(good, `"diff_ids"`, `"Diff_Ids":[],"diff_ids"`, 1), "twice"},
		"rootfs as text":       {`{"rootfs":"x"}`, "string"},
		"user as number":       {strings.Replace(good, `"os"`, `"config":{"User":0},"os"`, 1), "number"},
		"env as text":          {strings.Replace(good, `"os"`, `"config":{"Env":"A=b"},"os"`, 1), "string"},
		"deep":                 {`{"config":` + strings.Repeat("[", 100_000), "deeper"},
		"two documents":        {good + good, "follows"},
		"null":                 {`null`, "rootfs"},
		"created in year zero": {strings.Replace(good, `"os"`, `"created":"junk","os"`, 1), "pars"},
	} {
		if _, err := ParseConfig([]byte(c.body), 2, want); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What is in labels, volumes and ports is data, and a history is not read.
	labels := strings.Replace(good, `"os"`, `"config":{"Labels":{"a":"1","A":"2"},"Volumes":{"/a":{},"/A":{}}},"history":[`+strings.Repeat("{},", 100_000)+`{}],"os"`, 1)
	if c, err := ParseConfig([]byte(labels), 2, want); err != nil || len(c.Config.Labels) != 2 || len(c.Config.Volumes) != 2 {
		t.Errorf("labels: %v", err)
	}
}

// testNames: a title is a path beneath the artifact's directory, or no path.
func testNames(t *testing.T) {
	byDigest := "sha256-" + digest.Digest(d2).Encoded()
	for title, want := range map[string]string{
		"model.bin": "model.bin", "a/b/c": "a/b/c", "..a": "..a", "a b": "a b", "ä": "ä", "-rf": "-rf",
		"": byDigest, ".": byDigest, "..": byDigest, "/etc/passwd": byDigest, "../x": byDigest, "a/../../x": byDigest, "a/../b": byDigest,
		"a//b": byDigest, "a/": byDigest, "./a": byDigest, `a\u0000`: byDigest, `a\nb`: byDigest, `\u001b[2J`: byDigest, `\u0085`: byDigest,
		strings.Repeat("x", 256): byDigest, strings.Repeat("x/", 600) + "x": byDigest, "\xff": "\ufffd",
	} {
		blob := strings.Replace(desc("text/plain", d2, 20), `"size"`, `"annotations":{"`+ocispec.AnnotationTitle+`":"`+title+`"},"size"`, 1)
		doc, err := Parse("", []byte(imageManifest(desc("application/vnd.oci.empty.v1+json", d1, 2), blob)), limits)
		if err != nil || len(doc.Manifest.Files) != 1 || doc.Manifest.Files[0] != want {
			t.Errorf("%q: %v, %v", title, doc, err)
		}
	}
	titled := func(d, title string) string {
		return fmt.Sprintf(`{"mediaType":"x/y","digest":%q,"size":1,"annotations":{%q:%q}}`, d, ocispec.AnnotationTitle, title)
	}
	for _, c := range []struct{ one, two, want string }{
		{titled(d2, "a"), titled(d3, "a"), "called"},
		{titled(d2, "a"), titled(d3, "a/b"), "directory"},
		{titled(d2, "a/b/c"), titled(d3, "a"), "directory"},
		{titled(d2, "a"), `{"mediaType":"x/y","digest":"` + d3 + `","size":1,"urls":["http://x/"]}`, "fetched from"},
		{titled(d2, "a"), strings.Replace(titled(d2, "b"), `"size":1`, `"size":2`, 1), "sizes"},
	} {
		_, err := Parse("", []byte(imageManifest(desc("application/vnd.oci.empty.v1+json", d1, 2), c.one+","+c.two)), limits)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %s: %v", c.one, c.two, err)
		}
	}
}

func TestArtifact(t *testing.T) {
	empty := desc("application/vnd.oci.empty.v1+json", d1, 2)
	for body, want := range map[string]string{
		imageManifest(desc("application/vnd.cncf.helm.config.v1+json", d1, 1), layer):                                    "application/vnd.cncf.helm.config.v1+json",
		strings.Replace(imageManifest(empty, layer), `"config"`, `"artifactType":"application/vnd.example","config"`, 1): "application/vnd.example",
		imageManifest(empty, empty):           "application/vnd.oci.empty.v1+json",
		imageManifest(empty, layer+","+layer): "application/vnd.oci.empty.v1+json",
		imageManifest(config, layer):          "",
		strings.Replace(imageManifest(config, layer), `"config"`, `"artifactType":"application/vnd.example","config"`, 1): "",
	} {
		doc, err := Parse("", []byte(body), limits)
		if err != nil || doc.Manifest.ArtifactType != want || doc.Manifest.IsArtifact() != (want != "") || (len(doc.Manifest.Files) == 1) != (want != "") {
			t.Errorf("%s: %v, %v", body, doc, err)
		}
	}
}

// FuzzManifest begins with the documents above and those that it once failed
// with (testdata).
func FuzzManifest(f *testing.F) {
	f.Add("", []byte(imageManifest(config, layer)))
	f.Add(ocispec.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[`+desc(ocispec.MediaTypeImageManifest, d1, 3)+`]}`))
	f.Add("", []byte(imageManifest(desc("application/vnd.oci.empty.v1+json", d1, 2), layer)))
	for _, list := range refusals() {
		for _, c := range list {
			if len(c.body) < 4096 {
				f.Add(c.mediaType, []byte(c.body))
			}
		}
	}
	f.Fuzz(func(t *testing.T, mediaType string, body []byte) {
		doc, err := Parse(mediaType, body, limits)
		if err != nil {
			return
		}
		if (doc.Manifest == nil) == (doc.Index == nil) {
			t.Fatal("neither or both")
		}
		list := doc.Index
		if m := doc.Manifest; m != nil {
			if list = append(m.Layers, m.Config); len(list) < 2 {
				t.Fatal("image without layers")
			}
			if m.IsArtifact() && len(m.Files) != len(m.Layers) || !m.IsArtifact() && len(m.Files) > 0 {
				t.Fatal("files do not go with layers")
			}
		}
		for _, d := range list {
			if CheckDigest(d.Digest) != nil || d.Size <= 0 || len(d.URLs) > 0 || d.Data != nil {
				t.Fatalf("let through: %v", d)
			}
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"rootfs":{"type":"layers","diff_ids":["` + d2 + `"]}}`))
	f.Add([]byte(`{"os":"linux","architecture":"amd64","config":{"User":"0","Env":["A=b"],"Labels":{"a":"b"},"Volumes":{"/v":{}}},"rootfs":{"type":"layers","diff_ids":["` + d2 + `"]},"history":[{}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := ParseConfig(body, 1, platforms.All)
		if err == nil && (len(c.ChainIDs) != 1 || CheckDigest(c.RootFS.DiffIDs[0]) != nil) {
			t.Fatalf("let through: %v", c)
		}
	})
}
