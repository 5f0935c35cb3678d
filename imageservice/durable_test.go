package imageservice

import (
	"context"
	"io"
	"os"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// counted counts the layers that are fetched.
type counted struct {
	*memory
	n atomic.Int64
}

func (c *counted) Open(ctx context.Context, d ocispec.Descriptor) io.ReadCloser {
	c.n.Add(1)
	c.all.Add(1)
	return c.memory.Open(ctx, d)
}

// TestFailedWriteIsNotForgotten: the kernel tells once that it could not write,
// so nothing that was written by then is used for another image, or a retry.
func TestFailedWriteIsNotForgotten(t *testing.T) {
	needRoot(t)
	img, digests := tenLayers(t)
	found, src := inMemory(t, img)
	c := &counted{memory: src}
	s := open(t, testConfig(t))
	root, err := os.Open(s.cfg.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	closed, err := os.Open(s.cfg.Root)
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	var images []*image
	for range 2 { // the second has all layers of the first
		img, _, err := s.download(t.Context(), c, found, func(int) {})
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, img)
	}
	if n := c.n.Load(); n != 10 {
		t.Errorf("%d layers were fetched for both", n)
	}
	if err := s.commit(images[0], nil, nil, closed); err == nil {
		t.Error("what was not written is an image")
	}
	if err := s.commit(images[1], nil, nil, root); !errdefs.IsAborted(err) {
		t.Errorf("another of the same layers: %v", err)
	}
	if left := leftovers(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	checkFigures(t, s)

	// So are those that wait for a retry.
	blob := digest.Digest(digests[9].String())
	body := src.blobs[blob]
	delete(src.blobs, blob)
	src.all.Add(9)
	if _, _, err := s.download(t.Context(), src, found, func(int) {}); err == nil {
		t.Fatal("the image is there")
	}
	s.distrust()
	if left := leftovers(t, s); len(left) != 0 {
		t.Errorf("left of those that waited: %v", left)
	}
	checkFigures(t, s)

	src.blobs[blob] = body
	if _, err := s.fetchImage(t.Context(), c, found, []string{"r.example/app:v1"}); err != nil {
		t.Fatal(err)
	}
	if n := c.n.Load(); n != 20 {
		t.Errorf("the retry fetched %d layers", n-10)
	}
}
