package unpack

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2/ktesting"

	"github.com/gantry-cri/gantry/imageservice"
	"github.com/gantry-cri/gantry/test/filetree"
	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

func TestMain(m *testing.M) {
	unix.Umask(0o022) // for the directories that tools make on their own
	harness.Main(m)
}

// gantry is an image service and the registry that it pulls from.
type gantry struct {
	registry *images.Registry
	service  *imageservice.Service
	pushed   int
}

func start(t *testing.T) *gantry {
	t.Helper()
	r, err := images.New()
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	dir := t.TempDir()
	_, ctx := ktesting.NewTestContext(t)
	s, err := imageservice.Open(ctx, imageservice.Config{Root: filepath.Join(dir, "root"), RunDir: filepath.Join(dir, "run")})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return &gantry{registry: r, service: s}
}

// unpack pulls an image of the layers and reads it as a container would see it. The image is then removed, so that
// the next one with the same layers, compressed otherwise, is unpacked anew.
func (g *gantry) unpack(t *testing.T, tars [][]byte, c images.Compression) filetree.Tree {
	t.Helper()
	g.pushed++
	ref := fmt.Sprintf("unpack/image:%d", g.pushed)
	must(t, g.registry.Push(t.Context(), ref, imageOf(t, tars, c)))
	pulled, err := g.service.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: g.registry.Addr + "/" + ref}})
	must(t, err)
	id := pulled.GetImageRef()
	dir, err := g.service.Mount(t.Context(), "container", id)
	must(t, err)
	defer func() {
		ctx := context.WithoutCancel(t.Context())
		must(t, g.service.Unmount(ctx, "container"))
		_, err := g.service.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: id}})
		must(t, err)
	}()
	return read(t, dir)
}

// Every image is unpacked by Gantry from gzip, zstd and plain layers, by umoci and by tar: all five are equal.
func TestEqualToOtherTools(t *testing.T) {
	harness.Require(t)
	g := start(t)
	for _, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			var tars [][]byte
			for _, l := range c.layers {
				tars = append(tars, tarOf(t, l...))
			}
			g.compare(t, c, tars)
		})
	}
}

func (g *gantry) compare(t *testing.T, c image, tars [][]byte) {
	t.Helper()
	got := g.unpack(t, tars, images.Gzip)
	if len(got) < 3 {
		t.Fatalf("only %d files", len(got))
	}
	if c.noUmoci != "" {
		t.Logf("not compared with umoci: %s", c.noUmoci)
	} else {
		same(t, "umoci", got, byUmoci(t, tars), append(c.unlisted, c.umociTimes...))
	}
	same(t, "tar", got, byTar(t, tars), c.unlisted)
	if !c.large {
		same(t, "itself from zstd", g.unpack(t, tars, images.Zstd), got, c.unlisted)
		same(t, "itself from plain layers", g.unpack(t, tars, images.Plain), got, c.unlisted)
	}
}

// GNU tar itself writes sparse files, in each of its formats.
func TestSparse(t *testing.T) {
	harness.Require(t)
	g := start(t)
	source := t.TempDir()
	sparse(t, filepath.Join(source, "holes"), 3<<20, map[int64]string{0: "start", 1<<20 + 17: "middle", 3<<20 - 3: "end"})
	sparse(t, filepath.Join(source, "hole-at-end"), 1<<20, map[int64]string{4096: "data"})
	sparse(t, filepath.Join(source, "all-hole"), 1<<22, nil)
	many := map[int64]string{}
	for i := range int64(60) { // more than fit into a header
		many[i<<16] = "x"
	}
	sparse(t, filepath.Join(source, "many-holes"), 4<<20, many)
	must(t, os.WriteFile(filepath.Join(source, "dense"), []byte("dense"), 0o644))
	for _, format := range [][]string{{"--format=gnu"}, {"--format=oldgnu"}, {"--format=pax", "--sparse-version=0.0"},
		{"--format=pax", "--sparse-version=0.1"}, {"--format=pax", "--sparse-version=1.0"}} {
		t.Run(format[len(format)-1], func(t *testing.T) {
			c := image{}
			if len(format) == 1 {
				c.noUmoci = "umoci 0.4 does not know the entry type of old sparse files"
			}
			out := filepath.Join(t.TempDir(), "tar")
			run(t, nil, "tar", append(format, "--sparse", "--create", "--file="+out, "--directory="+source, ".")...)
			body, err := os.ReadFile(out)
			must(t, err)
			if len(body) > 1<<20 {
				t.Fatalf("tar wrote %d bytes: not sparse", len(body))
			}
			g.compare(t, c, [][]byte{body})
		})
	}
}

func sparse(t *testing.T, path string, size int64, parts map[int64]string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	must(t, f.Truncate(size))
	for off, text := range parts {
		_, err := f.WriteAt([]byte(text), off)
		must(t, err)
	}
	must(t, f.Close())
}
