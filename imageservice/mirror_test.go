package imageservice

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// liar spoils the layers that a registry answers, and nothing else.
func liar(t *testing.T, reg *testRegistry, img v1.Image, spoil func([]byte)) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	spoilt := make(map[string]bool)
	for _, l := range layers {
		d, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		spoilt[d.String()] = true
	}
	reg.intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if _, d, _ := strings.Cut(r.URL.Path, "/blobs/"); !spoilt[d] {
			next.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		body := bytes.Clone(rec.Body.Bytes())
		spoil(body)
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body)
	})
}

// mirrored is the configuration of a registry behind a mirror.
func mirrored(t *testing.T, reg, mirror *testRegistry) Config {
	t.Helper()
	cfg := testConfig(t)
	dir := t.TempDir()
	cfg.HostsDirs = []string{dir}
	dir = filepath.Join(dir, reg.host())
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("server = %q\n[host.%q]\n", reg.URL, mirror.URL)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// spoilings are what a mirror may make of a blob that keeps its length.
var spoilings = map[string]func([]byte){
	"last byte": func(b []byte) { b[len(b)-1]++ },
	"middle":    func(b []byte) { b[len(b)/2]++ },
	"page":      func(b []byte) { copy(b, "<!DOCTYPE html>"+strings.Repeat(" ", len(b))) },
	"zeros":     func(b []byte) { clear(b) },
}

// A mirror whose blobs are something else costs time, not the pull.
func TestMirrorWithWrongBytes(t *testing.T) {
	needRoot(t)
	for name, spoil := range spoilings {
		t.Run(name, func(t *testing.T) {
			reg, mirror := newRegistry(t), newRegistry(t)
			img := variedImage(t)
			ref := reg.push(t, "varied", "1", img)
			mirror.push(t, "varied", "1", img)
			liar(t, mirror, img, spoil)
			cfg := mirrored(t, reg, mirror)
			cfg.KeepLayerBlobs, cfg.MaxDownloads = true, 1
			s := open(t, cfg)
			pull(t, s, ref)
			if n := mirror.count("GET", "/blobs/"); n != 2 {
				t.Errorf("the mirror was asked for %d blobs, not for the config and one layer", n)
			}
			if n := reg.count("GET", "/blobs/"); n != 3 {
				t.Errorf("the registry was asked for %d blobs, not for all layers once", n)
			}
			archive, changed := save(t, s, false, ref) // its kept blobs are those of the registry
			if len(changed) != 0 || len(archive) == 0 {
				t.Errorf("changed %q", changed)
			}
			remove(t, s, ref)
			if left := leftovers(t, s); len(left) != 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// When all say the same wrong thing the pull fails, after each was asked once.
func TestWrongBytesEverywhere(t *testing.T) {
	needRoot(t)
	reg, mirror := newRegistry(t), newRegistry(t)
	img := imageOf(t, gzipLayer(t, file("f", "x")))
	ref := reg.push(t, "x", "1", img)
	mirror.push(t, "x", "1", img)
	liar(t, reg, img, spoilings["middle"])
	liar(t, mirror, img, spoilings["middle"])
	s := open(t, mirrored(t, reg, mirror))
	if err := pullError(t, s, ref); !errdefs.IsDataLoss(err) {
		t.Errorf("got %v", err)
	}
	if a, b := mirror.count("GET", "/blobs/"), reg.count("GET", "/blobs/"); a != 2 || b != 1 {
		t.Errorf("the mirror was asked for %d blobs, the registry for %d", a, b)
	}
	if left := leftovers(t, s); len(left) != 0 || s.used != (Usage{}) {
		t.Errorf("left: %q, %v", left, s.used)
	}
}

// The files of an artifact come from the next host too, also two of the same
// content, which are read at once.
func TestMirrorWithWrongFiles(t *testing.T) {
	needRoot(t)
	reg, mirror := newRegistry(t), newRegistry(t)
	files := map[string]string{"a": "same content", "b": "same content", "c": "another"}
	ref, id := pushArtifact(t, reg, files)
	pushArtifact(t, mirror, files)
	mirror.intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			http.NotFound(w, r) // the manifest is the registry's: that of the mirror has another order
			return
		}
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		answer := bytes.ToUpper(rec.Body.Bytes())
		w.Header().Set("Content-Length", fmt.Sprint(len(answer)))
		_, _ = w.Write(answer)
	})
	s := open(t, mirrored(t, reg, mirror))
	if got := pull(t, s, ref); got != id {
		t.Errorf("artifact %s, not %s", got, id)
	}
	fs := s.path(layersDir, strings.TrimPrefix(id, "sha256:")+".artifact", "fs")
	for name, want := range files {
		if body, err := os.ReadFile(filepath.Join(fs, name)); err != nil || string(body) != want {
			t.Errorf("%s: %q, %v", name, body, err)
		}
	}
	if mirror.count("GET", "/blobs/") == 0 {
		t.Error("the mirror was not asked")
	}
}
