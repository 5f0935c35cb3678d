package layer

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func TestCompressions(t *testing.T) {
	needRoot(t)
	plain := tarOf(t, []entry{dir("d/"), file("d/f", strings.Repeat("content ", 100000))})
	zipped := func(b []byte) []byte {
		var buf bytes.Buffer
		zw := gzip.NewWriter(&buf)
		_, err := zw.Write(b)
		check(t, err)
		check(t, zw.Close())
		return buf.Bytes()
	}
	zw, err := zstd.NewWriter(nil)
	check(t, err)
	for name, blob := range map[string][]byte{
		"plain":        plain,
		"gzip":         zipped(plain),
		"gzip members": append(zipped(plain[:1000]), zipped(plain[1000:])...),
		"zstd":         zw.EncodeAll(plain, nil),
		"zstd frames":  append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00skip"), zw.EncodeAll(plain, nil)...),
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			res, err := Unpack(t.Context(), source(blob, plain), openDir(t, root), Limits{})
			check(t, err)
			if res.Inodes != 3 || res.Bytes < 800000 {
				t.Errorf("%d bytes, %d inodes", res.Bytes, res.Inodes)
			}
			for what, spoil := range map[string]func(*Source){
				"cut":          func(s *Source) { *s = sourceOf(s, blob[:len(blob)/2]) },
				"longer":       func(s *Source) { *s = sourceOf(s, append(bytes.Clone(blob), 0)) },
				"other bytes":  func(s *Source) { b := bytes.Clone(blob); b[len(b)/2] ^= 1; *s = sourceOf(s, b) },
				"other diffID": func(s *Source) { s.DiffID = digest.FromString("other") },
				"other digest": func(s *Source) { s.Digest = digest.FromString("other") },
			} {
				src := source(blob, plain)
				spoil(&src)
				if _, err := Unpack(t.Context(), src, openDir(t, t.TempDir()), Limits{}); err == nil {
					t.Errorf("%s: accepted", what)
				}
			}
		})
	}
}

func sourceOf(s *Source, body []byte) Source {
	out := *s
	out.Open = func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	return out
}

func TestLimits(t *testing.T) {
	needRoot(t)
	body := tarOf(t, []entry{file("a", "12345"), file("b/c", "12345")})
	for _, l := range []Limits{{Entries: 2}, {Bytes: 1024}, {Bytes: 9}} {
		if _, err := Unpack(t.Context(), source(body, body), openDir(t, t.TempDir()), l); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", l, err)
		}
	}
	if _, err := Unpack(t.Context(), source(body, body), openDir(t, t.TempDir()), Limits{Entries: 3}); err != nil {
		t.Error(err)
	}
}

func TestSparseKeepsItsHoles(t *testing.T) {
	needRoot(t)
	// GNU sparse 1.0 in PAX form: 1 GiB with four bytes at its end.
	const size = 1 << 30
	content := fmt.Sprintf("1\n%d\n4\n", size-4)
	content += strings.Repeat("\x00", 512-len(content)) + "data"
	var buf bytes.Buffer
	pax := ""
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=f", fmt.Sprintf("GNU.sparse.realsize=%d", size)} {
		n := len(kv) + 3 + len("00")
		pax += fmt.Sprintf("%d %s\n", n-1, kv)
	}
	buf.Write(rawHeader("pax", 'x', len(pax)))
	buf.WriteString(pax + strings.Repeat("\x00", (512-len(pax)%512)%512))
	buf.Write(rawHeader("GNUSparseFile.0/f", '0', len(content)))
	buf.WriteString(content + strings.Repeat("\x00", (512-len(content)%512)%512))
	buf.Write(make([]byte, 1024))
	root := t.TempDir()
	res, err := Unpack(t.Context(), source(buf.Bytes(), buf.Bytes()), openDir(t, root), Limits{})
	check(t, err)
	var st unix.Stat_t
	check(t, unix.Stat(filepath.Join(root, "f"), &st))
	if st.Size != size || st.Blocks > 64 || res.Bytes > 1<<20 {
		t.Errorf("size %d, blocks %d, counted %d", st.Size, st.Blocks, res.Bytes)
	}
}

func rawHeader(name string, kind byte, size int) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x00")
	copy(b[108:], "0000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], "00000000000\x00")
	copy(b[148:], "        ")
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func TestCancel(t *testing.T) {
	needRoot(t)
	body := tarOf(t, []entry{file("a", "12345")})
	ctx, cancel := context.WithCancelCause(t.Context())
	src := source(body, body)
	src.Open = func(ctx context.Context) (io.ReadCloser, error) { return stuck{ctx}, nil }
	stop := errors.New("stop")
	time.AfterFunc(10*time.Millisecond, func() { cancel(stop) })
	if _, err := Unpack(ctx, src, openDir(t, t.TempDir()), Limits{}); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

type stuck struct{ ctx context.Context }

func (s stuck) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, context.Cause(s.ctx)
}

func (stuck) Close() error { return nil }

type faulty struct{}

func (faulty) Read([]byte) (int, error) { panic("boom") }
func (faulty) Close() error             { return nil }

// A fault in one stage ends the others and is an error of this layer alone.
func TestPanicIsAnError(t *testing.T) {
	root, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	src := Source{Open: func(context.Context) (io.ReadCloser, error) { return faulty{}, nil }, Size: 1}
	if _, err := Unpack(t.Context(), src, int(root.Fd()), Limits{}); !errdefs.IsInternal(err) {
		t.Errorf("%v", err)
	}
}
