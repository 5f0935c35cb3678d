package imageservice

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// bigLayer is the tar of many files, half of each incompressible.
func bigLayer(t testing.TB, seed byte, files, size int) []byte {
	rng := rand.NewChaCha8([32]byte{seed})
	entries := []entry{dir("data/", 0o755)}
	for i := range files {
		content := bytes.Repeat([]byte("the quick brown fox "), size/20+1)[:size]
		_, _ = rng.Read(content[:size/2])
		entries = append(entries, file(fmt.Sprintf("data/f%d", i), string(content)))
	}
	return tarOf(t, entries...)
}

// BenchmarkPull is a whole pull from a registry in the same process: transfer,
// unpacking, syncfs, record.
func BenchmarkPull(b *testing.B) {
	needRoot(b)
	for _, c := range []struct {
		name                string
		layers, files, size int
	}{{"OneLayer256MiB", 1, 4000, 64 << 10}, {"TenLayers25MiB", 10, 400, 64 << 10}, {"SmallFiles40000", 2, 20000, 2 << 10}} {
		b.Run(c.name, func(b *testing.B) {
			reg := newRegistry(b)
			var layers []v1.Layer
			for i := range c.layers {
				layers = append(layers, gzipTar(b, bigLayer(b, byte(i), c.files, c.size)))
			}
			ref := reg.push(b, "big", "latest", imageOf(b, layers...))
			s := open(b, testConfig(b))
			b.SetBytes(int64(c.layers * c.files * c.size))
			for b.Loop() {
				id := pull(b, s, ref)
				b.StopTimer()
				if _, err := s.RemoveImage(b.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: id}}); err != nil {
					b.Fatal(err)
				}
				for len(leftovers(b, s)) > 0 {
					time.Sleep(time.Millisecond)
				}
				b.StartTimer()
			}
		})
	}
}

func BenchmarkMount(b *testing.B) {
	needRoot(b)
	reg := newRegistry(b)
	ref := reg.push(b, "small", "latest", imageOf(b, gzipLayer(b, dir("bin/", 0o755), file("bin/true", "x")), gzipLayer(b, dir("etc/", 0o755))))
	s := open(b, testConfig(b))
	id := pull(b, s, ref)
	b.ResetTimer()
	for b.Loop() {
		if _, err := s.Mount(b.Context(), "c1", id); err != nil {
			b.Fatal(err)
		}
		if err := s.Unmount(b.Context(), "c1"); err != nil {
			b.Fatal(err)
		}
	}
}
