package imageservice

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// verifier makes a shell script the only program to be asked.
func verifier(t *testing.T, cfg *Config, script string) {
	t.Helper()
	if cfg.Verify.BinDir == "" {
		cfg.Verify = Verify{BinDir: t.TempDir(), MaxPrograms: 1, Timeout: time.Minute}
	}
	path := filepath.Join(cfg.Verify.BinDir, "policy")
	if err := os.WriteFile(path+".new", []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// TestVerification: the program is asked about what the name leads to, before
// a layer is fetched, for each name, and for images that are here already.
func TestVerification(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	img := imageOf(t, gzipLayer(t, file("f", "x")))
	tag := reg.push(t, "app", "latest", img)
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{Add: img})
	multi := reg.pushManifest(t, "app", "multi", index)
	d, _ := index.Digest()
	cfg := testConfig(t)
	asked := filepath.Join(t.TempDir(), "asked")
	verifier(t, &cfg, "echo $2 $4 >>"+asked+"; echo not signed; exit 1")
	s := open(t, cfg)
	err := pullError(t, s, multi)
	if !strings.HasPrefix(err.Error(), "SignatureValidationFailed: ") || !errdefs.IsPermissionDenied(err) ||
		!strings.Contains(err.Error(), "policy") || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("got %v", err)
	}
	if n := reg.count("GET", "/blobs/"); n != 0 || len(leftovers(t, s)) != 0 {
		t.Errorf("%d blobs were fetched for an image that is refused", n)
	}
	if body, _ := os.ReadFile(asked); string(body) != multi+" "+d.String()+"\n" {
		t.Errorf("asked about %q", body)
	}

	verifier(t, &cfg, "exit 0")
	id := pull(t, s, multi)
	verifier(t, &cfg, `[ "$2" = `+tag+` ] || exit 1`)
	if pull(t, s, tag) != id {
		t.Error("another image")
	}
	for range 2 { // it is here, and its name leads to it
		if err := pullError(t, s, multi); !strings.HasPrefix(err.Error(), "SignatureValidationFailed") {
			t.Errorf("got %v", err)
		}
	}
	if got := status(t, s, multi); got == nil || got.Id != id {
		t.Errorf("an image that was here is gone: %v", got)
	}
	if err := os.WriteFile(filepath.Join(cfg.Verify.BinDir, "second"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := pullError(t, s, tag); !strings.Contains(err.Error(), "2 image verifiers") {
		t.Errorf("got %v", err)
	}
	reg.reset()
	if err := os.RemoveAll(cfg.Verify.BinDir); err != nil {
		t.Fatal(err)
	}
	if pull(t, s, multi); reg.count("GET", "/manifests/") != 0 {
		t.Error("without verifiers an unchanged image is fetched")
	}
}
