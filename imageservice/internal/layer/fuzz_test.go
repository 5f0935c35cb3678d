package layer

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/gantry-cri/gantry/test/hostile"
)

// fuzzPlace is a root that is empty again after each input, since making a canary takes longer than unpacking.
type fuzzPlace struct {
	outer, canary, before string
}

func newFuzzPlace(f *testing.F) fuzzPlace {
	p := fuzzPlace{outer: f.TempDir()}
	p.canary = filepath.Join(p.outer, "canary")
	check(f, hostile.Canary(p.canary))
	var err error
	p.before, err = hostile.Snapshot(p.canary)
	check(f, err)
	return p
}

func (p fuzzPlace) dir(t *testing.T, name string) string {
	dir := filepath.Join(p.outer, name)
	check(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	return dir
}

func (p fuzzPlace) check(t *testing.T, dirs int) {
	after, err := hostile.Snapshot(p.canary)
	check(t, err)
	if d := cmp.Diff(p.before, after); d != "" {
		t.Error(d)
	}
	if got, err := os.ReadDir(p.outer); err != nil || len(got) != dirs+1 {
		t.Errorf("beside the root: %v, %v", got, err)
	}
}

var fuzzLimits = Limits{Entries: 1000, Bytes: 1 << 20}

// seeds are the small ones of the malicious image builder.
func seeds(f *testing.F, add func(c hostile.Case)) {
	needRoot(f)
	for _, c := range hostile.Cases("/canary/file") {
		if len(c.Layer) < 16<<10 {
			add(c)
		}
	}
}

// FuzzUnpack: whatever the tar says, nothing beside the root changes.
func FuzzUnpack(f *testing.F) {
	seeds(f, func(c hostile.Case) { f.Add(c.Layer) })
	p := newFuzzPlace(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		body = hostile.Reseal(body)
		fds := openFiles(t)
		fd := openDir(t, p.dir(t, "root"))
		res, err := Unpack(t.Context(), source(body, body), fd, fuzzLimits)
		if err == nil && res.Dependent() {
			_ = res.Complete(t.Context(), fd, openDir(t, p.canary)) // may fail
			fds++
		}
		if n := openFiles(t); n != fds+1 {
			t.Errorf("%d descriptors before, %d after", fds, n)
		}
		p.check(t, 1)
	})
}

// FuzzComplete: nor does whatever the layers below say, and these do not change either.
func FuzzComplete(f *testing.F) {
	seeds(f, func(c hostile.Case) {
		for _, below := range c.Below {
			f.Add(below, c.Layer)
		}
	})
	f.Add(hostile.Tar(hostile.Dir("a"), hostile.Sym("b", "a"), hostile.File("a/f", "x")), hostile.Tar(hostile.File("b/g", "x"), hostile.Hard("b/h", "b/f"), hostile.File("b/b/c", "x")))
	p := newFuzzPlace(f)
	f.Fuzz(func(t *testing.T, below, body []byte) {
		below, body = hostile.Reseal(below), hostile.Reseal(body)
		lowerDir := p.dir(t, "lower")
		lower := openDir(t, lowerDir)
		if res, err := Unpack(t.Context(), source(below, below), lower, fuzzLimits); err != nil || (res.Dependent() && res.Complete(t.Context(), lower, -1) != nil) {
			return
		}
		before, err := hostile.Snapshot(lowerDir)
		check(t, err)
		root := openDir(t, p.dir(t, "root"))
		res, err := Unpack(t.Context(), source(body, body), root, fuzzLimits)
		if err == nil && res.Dependent() {
			_ = res.Complete(t.Context(), root, lower) // may fail
		}
		after, err := hostile.Snapshot(lowerDir)
		check(t, err)
		if d := cmp.Diff(before, after); d != "" {
			t.Errorf("lower layer: %s", d)
		}
		p.check(t, 2)
	})
}

// FuzzInflate: a decoder ends, with no more than the limit.
func FuzzInflate(f *testing.F) {
	plain := hostile.Tar(hostile.File("f", "x"))
	for _, blob := range [][]byte{nil, plain, hostile.Gzip(plain), hostile.Zstd(plain), hostile.ZstdWindow(27), hostile.ZstdWindow(41),
		append(hostile.Gzip(plain), hostile.Gzip(nil)...), []byte("\x50\x2a\x4d\x18\x00\x00\x00\x00"), gzipStored(plain), hostile.Zstd(make([]byte, 100_000))} {
		f.Add(blob)
	}
	const limit = 1 << 20
	f.Fuzz(func(t *testing.T, blob []byte) {
		group, ctx := errgroup.WithContext(t.Context())
		in, out := newLink(ctx), newLink(ctx)
		got := 0
		src := source(blob, nil)
		group.Go(func() error { return fetch(ctx, src, discardHash{}, in) })
		group.Go(func() error { return inflate(in, out, limit) })
		group.Go(func() error { return count(ctx, out, &got) })
		err := group.Wait()
		if got > limit {
			t.Errorf("%d bytes", got)
		}
		if err == nil && len(blob) > 0 && got == 0 && !bytes.HasPrefix(blob, []byte{0x1f, 0x8b}) && !isZstd(append(blob, 0, 0, 0, 0)) {
			t.Error("nothing came of what is not compressed")
		}
	})
}

func count(_ context.Context, l *link, n *int) error {
	r := &linkReader{link: l}
	for {
		if err := r.next(); err != nil {
			if r.broken() {
				return fmt.Errorf("reading: %w", err)
			}
			return nil
		}
		*n += len(r.buf)
	}
}

type discardHash struct{}

func (discardHash) Write(p []byte) (int, error) { return len(p), nil }
func (discardHash) Sum(b []byte) []byte         { return b }
func (discardHash) Reset()                      {}
func (discardHash) Size() int                   { return 0 }
func (discardHash) BlockSize() int              { return 1 }
