package imageservice

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pushArtifact puts files into the registry, "" for one without a title.
func pushArtifact(t *testing.T, reg *testRegistry, files map[string]string) (ref, id string) {
	t.Helper()
	return pushArtifactOf(t, reg, "{}", files)
}

func pushArtifactOf(t *testing.T, reg *testRegistry, config string, files map[string]string) (ref, id string) {
	t.Helper()
	blob := func(body string) (digest.Digest, int) {
		d := digest.FromString(body)
		reg.pushBlob(t, "model", v1.Hash{Algorithm: "sha256", Hex: d.Encoded()}, []byte(body))
		return d, len(body)
	}
	var layers []string
	for name, body := range files {
		d, n := blob(body)
		annotations := ""
		if name != "" {
			annotations = fmt.Sprintf(`,"annotations":{"org.opencontainers.image.title":%q}`, name)
		}
		layers = append(layers, fmt.Sprintf(`{"mediaType":"text/plain","digest":%q,"size":%d%s}`, d, n, annotations))
	}
	d, n := blob(config)
	body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":"application/vnd.example","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":%d},"layers":[%s]}`,
		types.OCIManifestSchema1, d, n, strings.Join(layers, ","))
	reg.put(t, http.MethodPut, "/v2/model/manifests/v1", string(types.OCIManifestSchema1), []byte(body))
	return reg.host() + "/model:v1", digest.FromString(body).String()
}

func TestArtifact(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	files := map[string]string{"a.txt": "a", "sub/dir/b.bin": strings.Repeat("b", 100_000), "": "untitled", "../../escape": "contained"}
	ref, id := pushArtifact(t, reg, files)
	cfg := testConfig(t)
	s := open(t, cfg)
	if got := pull(t, s, ref); got != id {
		t.Errorf("id %s, not that of the manifest %s", got, id)
	}
	check := func() {
		t.Helper()
		img := status(t, s, ref)
		if img.GetId() != id || img.GetSize() < 100_000 || len(img.GetRepoTags()) != 1 {
			t.Errorf("image %v", img)
		}
		fs := s.path(layersDir, digest.Digest(id).Encoded()+".artifact", "fs")
		for name, want := range files {
			if name == "" || strings.HasPrefix(name, "..") {
				name = "sha256-" + digest.FromString(want).Encoded()
			}
			info, err := os.Stat(filepath.Join(fs, name))
			if err != nil || info.Mode() != 0o444 {
				t.Errorf("%s: %v, %v", name, info, err)
			}
			if body, err := os.ReadFile(filepath.Join(fs, name)); err != nil || string(body) != want {
				t.Errorf("%s: %d bytes, %v", name, len(body), err)
			}
		}
		if _, err := s.Mount(t.Context(), "c1", id); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("run as a container: %v", err)
		}
		resp, err := s.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: id}, Verbose: true})
		if err != nil || !strings.Contains(resp.Info["info"], "application/vnd.example") {
			t.Errorf("%v, %v", resp, err)
		}
		if left := leftovers(t, s); len(left) != 1 {
			t.Errorf("left: %v", left)
		}
		checkFigures(t, s)
	}
	check()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	check()
	if _, err := s.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, s); status(t, s, id) != nil || len(left) != 0 || s.used != (Usage{}) {
		t.Errorf("left: %v", left)
	}
}

// TestArtifactIsVerified: a file that is something else leaves nothing.
func TestArtifactIsVerified(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	ref, _ := pushArtifact(t, reg, map[string]string{"a": "aaaa", "b": "bbbb"})
	cfg := testConfig(t)
	cfg.Limits.LayerSize = 4
	s := open(t, cfg)
	for answer, want := range map[string]string{"cccc": "digest", "cc": "", "ccccc": ""} {
		reg.intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, digest.FromString("bbbb").String()) {
				_, _ = w.Write([]byte(answer))
				return
			}
			next.ServeHTTP(w, r)
		})
		if err := pullError(t, s, ref); !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", answer, err)
		}
		if left := leftovers(t, s); len(left) != 0 || s.used != (Usage{}) {
			t.Errorf("left: %v", left)
		}
	}
	reg.intercept(nil)
	pull(t, s, ref)
	large, _ := pushArtifact(t, reg, map[string]string{"a": "aaaaa"})
	if err := pullError(t, s, large); !strings.Contains(err.Error(), "5 bytes, more than 4") {
		t.Errorf("got %v", err)
	}
}
