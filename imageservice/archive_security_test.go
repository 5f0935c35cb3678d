package imageservice

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
)

// dockerTar is a docker-archive of one layer whose manifest.json a test
// decides on.
func dockerTar(t testing.TB, names []string, diffID digest.Digest, layer []byte) []byte {
	t.Helper()
	config := fmt.Sprintf(`{"os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, diffID)
	list, err := json.Marshal([]any{map[string]any{"Config": "c.json", "RepoTags": names, "Layers": []string{"l.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, file("c.json", config), file("l.tar", string(layer)), file("manifest.json", string(list)))
}

func TestSecurityArchives(t *testing.T) {
	needRoot(t)
	layer := tarOf(t, file("f", "x"))
	right := digest.FromBytes(layer)
	// refused requires that an archive is not taken, and that what was here
	// stays as it was, with nothing beside it.
	refused := func(name string, is func(error) bool, archive func(t *testing.T) []byte) {
		t.Run(name, func(t *testing.T) {
			s := open(t, testConfig(t))
			load(t, s, bytes.NewReader(dockerArchive(t, map[string]v1.Image{"r.example/x:1": imageOf(t, gzipLayer(t, file("old", "x")))})))
			before := status(t, s, "r.example/x:1")
			files := leftovers(t, s)
			err := s.Load(t.Context(), bytes.NewReader(archive(t)), func(id string, tags []string) { t.Errorf("loaded %s %q", id, tags) })
			if err == nil || !is(err) {
				t.Errorf("got %v", err)
			}
			if after := status(t, s, "r.example/x:1"); after.GetId() != before.Id || len(s.list(nil)) != 1 {
				t.Errorf("image %v became %v, of %v", before, after, s.list(nil))
			}
			if now := leftovers(t, s); !slices.Equal(now, files) {
				t.Errorf("files %q became %q", files, now)
			}
		})
	}
	withName := func(names ...string) func(*testing.T) []byte {
		return func(t *testing.T) []byte { return dockerTar(t, names, right, layer) }
	}
	refused("CVE-2026-50195-name-path", errdefs.IsInvalidArgument, withName("../../etc/passwd"))
	refused("CVE-2026-50195-name-control", errdefs.IsInvalidArgument, withName("r.example/x:1\n"))
	refused("CVE-2026-50195-name-userinfo", errdefs.IsInvalidArgument, withName("user:pass@r.example/x:1"))
	refused("CVE-2026-50195-second-name", errdefs.IsInvalidArgument, withName("r.example/x:1", "-rf"))
	refused("CVE-2026-50195-digest-name", errdefs.IsDataLoss, withName("r.example/x@sha256:"+strings.Repeat("0", 64)))
	refused("2.1-diff-id", errdefs.IsDataLoss, func(t *testing.T) []byte {
		return dockerTar(t, []string{"r.example/x:1"}, digest.FromString("another"), layer)
	})
	refused("2.1-hostile-layer", errdefs.IsInvalidArgument, func(t *testing.T) []byte {
		hostile := tarOf(t, entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "../../escaped"}})
		return dockerTar(t, []string{"r.example/x:1"}, digest.FromBytes(hostile), hostile)
	})
	t.Run("CVE-2022-24778-policy", func(t *testing.T) {
		for _, names := range [][]string{{"r.example/x:1"}, nil} {
			cfg := testConfig(t)
			verifier(t, &cfg, "exit 1")
			s := open(t, cfg)
			err := s.Load(t.Context(), bytes.NewReader(dockerTar(t, names, right, layer)), func(string, []string) {})
			if !errdefs.IsPermissionDenied(err) || len(s.list(nil)) != 0 {
				t.Errorf("names %q: %v, images %v", names, err, s.list(nil))
			}
		}
	})
	t.Run("2.1-save-follows-no-link", func(t *testing.T) {
		s := open(t, testConfig(t))
		img := imageOf(t, gzipLayer(t, symlink("d", "/etc"), symlink("f", "/etc/passwd"), symlink("loop", "loop")))
		load(t, s, bytes.NewReader(dockerArchive(t, map[string]v1.Image{"r.example/x:1": img})))
		archive, _ := save(t, s, false, "r.example/x:1")
		if bytes.Contains(archive, []byte("root:x:0:0")) {
			t.Error("the archive has a file of the host")
		}
	})
}
