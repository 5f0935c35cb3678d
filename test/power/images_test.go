package power

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/gantry-cri/gantry/test/images"
)

// imageCount is of the images in the registry.
const imageCount = 6

func name(r *images.Registry, i int) string { return fmt.Sprintf("%s/power/image%d:1", r.Addr, i) }

// serve starts a registry with images that share a layer, have ones of their own, and a third that is right only
// above these (a hard link to a file below).
func serve(t *testing.T) *images.Registry {
	t.Helper()
	r, err := images.New()
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	base := layer(t, 100, func(w *writer) {
		w.dir("base/")
		w.files("base/", 150, 3<<10)
		w.files("base/large", 1, 1<<20)
	})
	for i := range imageCount {
		own := layer(t, uint64(i), func(w *writer) {
			w.dir("own/")
			w.files("own/", 80, 2<<10)
			w.files("own/large", 1, 2<<20)
			w.add(tar.Header{Typeflag: tar.TypeSymlink, Name: "own/link", Linkname: "../base"}, nil)
			w.add(tar.Header{Typeflag: tar.TypeReg, Name: "own/program", Mode: 0o4755, Uid: 70000, Gid: 80000,
				PAXRecords: map[string]string{"SCHILY.xattr.user.color": "blue"}}, []byte("program"))
		})
		top := layer(t, uint64(i), func(w *writer) {
			w.add(tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "own/program"}, nil)
			w.add(tar.Header{Typeflag: tar.TypeReg, Name: "base/.wh.f3", Mode: 0o600}, nil)
			w.add(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("of-image-", i), Mode: 0o600}, []byte("x"))
		})
		img, err := images.OCI(base, own, top)
		must(t, err)
		must(t, r.Push(t.Context(), fmt.Sprintf("power/image%d:1", i), img))
	}
	return r
}

// writer makes the tar of one layer.
type writer struct {
	t      *testing.T
	tar    *tar.Writer
	random *rand.ChaCha8
}

func layer(t *testing.T, seed uint64, fill func(*writer)) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := &writer{t, tar.NewWriter(&buf), rand.NewChaCha8([32]byte{byte(seed)})}
	w.dir("./")
	fill(w)
	must(t, w.tar.Close())
	l, err := images.TarLayer(buf.Bytes(), images.Gzip)
	must(t, err)
	return l
}

func (w *writer) add(h tar.Header, body []byte) {
	w.t.Helper()
	h.Size, h.ModTime, h.Format = int64(len(body)), time.Unix(1e9, 123456789), tar.FormatPAX
	must(w.t, w.tar.WriteHeader(&h))
	_, err := w.tar.Write(body)
	must(w.t, err)
}

func (w *writer) dir(name string) {
	w.t.Helper()
	w.add(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, nil)
}

// files adds n files of random bytes.
func (w *writer) files(prefix string, n, size int) {
	w.t.Helper()
	for i := range n {
		body := make([]byte, size)
		_, err := w.random.Read(body)
		must(w.t, err)
		w.add(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%sf%d", prefix, i), Mode: 0o644}, body)
	}
}
