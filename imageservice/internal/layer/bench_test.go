package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/imageservice/internal/tree"
)

// benchTar has files of a size, half of each incompressible.
func benchTar(b *testing.B, files, size int) []byte {
	rng := rand.NewChaCha8([32]byte{1})
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	content := bytes.Repeat([]byte("the quick brown fox "), size/20+1)[:size]
	check(b, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "data/", Mode: 0o755}))
	for i := range files {
		_, _ = rng.Read(content[:size/2])
		check(b, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("data/f%d", i), Mode: 0o644, Size: int64(size)}))
		_, err := tw.Write(content)
		check(b, err)
	}
	check(b, tw.Close())
	return buf.Bytes()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// BenchmarkUnpack is the pipeline without network and without syncfs.
func BenchmarkUnpack(b *testing.B) {
	for _, c := range []struct{ files, size int }{{4000, 64 << 10}, {40000, 1 << 10}} {
		b.Run(fmt.Sprintf("%dx%dKiB", c.files, c.size>>10), func(b *testing.B) {
			body := benchTar(b, c.files, c.size)
			var blob bytes.Buffer
			zw := gzip.NewWriter(&blob)
			_, err := zw.Write(body)
			check(b, err)
			check(b, zw.Close())
			src := Source{
				Open:   func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob.Bytes())), nil },
				Digest: digest.NewDigestFromBytes(digest.SHA256, sum(blob.Bytes())),
				Size:   int64(blob.Len()),
				DiffID: digest.NewDigestFromBytes(digest.SHA256, sum(body)),
			}
			b.SetBytes(int64(len(body)))
			b.ResetTimer()
			base := b.TempDir()
			check(b, tree.Spread(base))
			var used float64
			for b.Loop() {
				dir := filepath.Join(base, strconv.FormatInt(time.Now().UnixNano(), 10)) // ext4 spreads by name
				check(b, os.Mkdir(dir, 0o755))
				fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
				check(b, err)
				before := cpu()
				_, err = Unpack(b.Context(), src, fd, Limits{})
				used += cpu() - before
				check(b, err)
				unix.Close(fd)
				b.StopTimer()
				check(b, os.RemoveAll(dir))
				b.StartTimer()
			}
			b.ReportMetric(used/float64(b.N), "cpu-s/op")
		})
	}
}

func sum(b []byte) []byte {
	h := sha256.Sum256(b)
	return h[:]
}

func cpu() float64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
