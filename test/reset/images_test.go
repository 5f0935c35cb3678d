package reset

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/gantry-cri/gantry/test/images"
)

// imageCount is of the images in the registry. Number 0 is always there, in the storm too.
const imageCount = 6

// registry is outside of the machine.
type registry struct {
	*images.Registry
	sums [imageCount]string // SHA-256 of each image's file /own/large
}

func (r *registry) host() string { return hostInGuest + r.Addr[len("127.0.0.1"):] }

func (r *registry) name(i int) string { return fmt.Sprintf("%s/reset/image%d:1", r.host(), i) }

// serve starts a registry with images that share a layer, with a shell in it, and have one of their own.
func serve(t *testing.T) *registry {
	t.Helper()
	all, err := images.New()
	must(t, err)
	t.Cleanup(func() { must(t, all.Close()) })
	r := &registry{Registry: all}
	busybox, err := os.ReadFile("/bin/busybox")
	must(t, err)
	base := layer(t, func(w *writer) {
		w.add(tar.Header{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755}, nil)
		w.add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, busybox)
		for _, program := range []string{"sh", "sleep", "sha256sum", "seq"} {
			w.add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + program, Linkname: "busybox"}, nil)
		}
	})
	for i := range imageCount {
		random := rand.NewChaCha8([32]byte{byte(i)})
		own := layer(t, func(w *writer) {
			w.add(tar.Header{Typeflag: tar.TypeDir, Name: "own/", Mode: 0o755}, nil)
			for f := range 60 {
				w.add(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("own/f%d", f), Mode: 0o644}, bytesOf(random, 2<<10))
			}
			large := bytesOf(random, 1<<20)
			w.add(tar.Header{Typeflag: tar.TypeReg, Name: "own/large", Mode: 0o644}, large)
			w.add(tar.Header{Typeflag: tar.TypeLink, Name: "own/hard", Linkname: "own/large"}, nil)
			r.sums[i] = fmt.Sprintf("%x", sha256.Sum256(large))
		})
		img, err := images.OCI(base, own)
		must(t, err)
		must(t, all.Push(t.Context(), fmt.Sprintf("reset/image%d:1", i), img))
	}
	return r
}

func bytesOf(random *rand.ChaCha8, n int) []byte {
	body := make([]byte, n)
	_, _ = random.Read(body) // it never fails
	return body
}

// writer makes the tar of one layer.
type writer struct {
	t *testing.T
	*tar.Writer
}

func layer(t *testing.T, fill func(*writer)) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := &writer{t, tar.NewWriter(&buf)}
	w.add(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}, nil)
	fill(w)
	must(t, w.Close())
	l, err := images.TarLayer(buf.Bytes(), images.Gzip)
	must(t, err)
	return l
}

func (w *writer) add(h tar.Header, body []byte) {
	w.t.Helper()
	h.Size = int64(len(body))
	must(w.t, w.WriteHeader(&h))
	_, err := w.Write(body)
	must(w.t, err)
}
