package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// serve starts the registry, or skips where its two ingredients are not there.
func serve(t *testing.T) *Registry {
	t.Helper()
	if _, err := os.Stat(busyboxPath); errors.Is(err, os.ErrNotExist) && os.Getenv("CI") != "true" {
		t.Skipf("%s is not there: run hack/install-deps.sh", busyboxPath)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	r, err := Serve(ctx, "127.0.0.1:0", false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func get(t *testing.T, url string) []byte {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: status %d, %v", url, resp.StatusCode, err)
	}
	return body
}

func TestEveryImageIsServedWhole(t *testing.T) {
	r := serve(t)
	b := &builder{}
	for _, c := range b.recipes() {
		var repo, tag string
		if n := bytes.LastIndexByte([]byte(c.ref), ':'); n > 0 {
			repo, tag = c.ref[:n], c.ref[n+1:]
		}
		base := "http://" + r.Addr + "/v2/" + repo
		var m ocispec.Manifest
		if err := json.Unmarshal(get(t, base+"/manifests/"+tag), &m); err != nil {
			t.Fatalf("%s: %v", c.ref, err)
		}
		for _, d := range append(m.Layers, m.Config) {
			body := get(t, base+"/blobs/"+d.Digest.String())
			if got := fmt.Sprintf("sha256:%x", sha256.Sum256(body)); got != d.Digest.String() {
				t.Errorf("%s: blob %s has digest %s", c.ref, d.Digest, got)
			}
		}
	}
}

func TestMirrorsNameEveryHost(t *testing.T) {
	folder := t.TempDir()
	r := &Registry{Addr: "127.0.0.1:5000"}
	if err := r.WriteMirrors(folder); err != nil {
		t.Fatal(err)
	}
	for _, h := range Hosts {
		body, err := os.ReadFile(folder + "/" + h + "/hosts.toml")
		if err != nil || !bytes.Contains(body, []byte(`[host."http://127.0.0.1:5000"]`)) {
			t.Errorf("%s: %q, %v", h, body, err)
		}
	}
}

func TestLayersAreReproducible(t *testing.T) {
	digest := func() string {
		l, err := bulkLayer(7, 3, 1024, Gzip)
		if err != nil {
			t.Fatal(err)
		}
		d, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d.String()
	}
	if a, b := digest(), digest(); a != b {
		t.Errorf("equal seeds gave %s and %s", a, b)
	}
}

func TestLayerKeepsLinksAndModes(t *testing.T) {
	l, err := newLayer(dir("d/", 0o1777), program("d/a", []byte("x")), hardlink("d/b", "d/a"), symlink("d/c", "a"), setuid("d/s", nil))
	if err != nil {
		t.Fatal(err)
	}
	rc, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	zr, err := gzip.NewReader(rc)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = fmt.Sprintf("%c %o %s", h.Typeflag, h.Mode, h.Linkname)
	}
	want := map[string]string{"d/": "5 1777 ", "d/a": "0 755 ", "d/b": "1 755 d/a", "d/c": "2 777 a", "d/s": "0 4755 "}
	for name, w := range want {
		if got[name] != w {
			t.Errorf("%s: got %q, want %q", name, got[name], w)
		}
	}
}
