package images

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestOverlap(t *testing.T) {
	for name, c := range map[string]struct {
		spans []Span
		again int64
		ok    bool
	}{
		"whole":             {[]Span{{0, 9, 9, false}}, 0, true},
		"resumed":           {[]Span{{0, 4, 9, true}, {4, 9, 9, false}}, 0, true},
		"tail sent again":   {[]Span{{0, 4, 9, true}, {2, 9, 9, false}}, 2, true},
		"from the start":    {[]Span{{0, 4, 9, true}, {0, 3, 9, true}, {3, 9, 9, false}}, 4, true},
		"parts":             {[]Span{{0, 4, 9, false}, {4, 9, 9, false}}, 0, true},
		"twice":             {[]Span{{0, 9, 9, false}, {0, 9, 9, false}}, 0, false},
		"gap":               {[]Span{{0, 4, 9, true}, {5, 9, 9, false}}, 0, false},
		"not all":           {[]Span{{0, 4, 9, true}}, 0, false},
		"none":              {nil, 0, false},
		"again unnecessary": {[]Span{{0, 4, 9, false}, {3, 9, 9, false}}, 0, false},
	} {
		again, err := Overlap(c.spans)
		if c.ok != (err == nil) || (c.ok && again != c.again) {
			t.Errorf("%s: %d, %v", name, again, err)
		}
	}
}

// The faults happen, as often as they should, and again with the same seed.
func TestFaultsAreOfTheSeed(t *testing.T) {
	layer, err := bulkLayer(9, 4, 4096, Gzip)
	if err != nil {
		t.Fatal(err)
	}
	img, err := OCI(layer)
	if err != nil {
		t.Fatal(err)
	}
	body, err := layer.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	whole, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	run := func(seed uint64) (trace string, got map[string]int) {
		f, err := NewFaulty(Faults{Seed: seed, Drop: 5, Truncate: 5, Refuse: 5})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Push(t.Context(), "a:1", img); err != nil {
			t.Fatal(err)
		}
		got = make(map[string]int)
		for range 100 {
			what := fetch(t, f, digest, whole)
			got[what]++
			trace += what + " "
		}
		spans := f.Blobs()[digest.String()]
		if n := f.Requests()["GET /v2/a/blobs/"+digest.String()]; n != 100 || len(spans) != 100-got["refused"] {
			t.Errorf("%d requests and %d spans", n, len(spans))
		}
		return trace, got
	}
	a, counts := run(1)
	for _, what := range []string{"dropped", "truncated", "refused"} {
		if n := counts[what]; n < 8 || n > 35 {
			t.Errorf("%s %d times of 100", what, n)
		}
	}
	if b, _ := run(1); a != b {
		t.Errorf("the same seed did\n%s and\n%s", a, b)
	}
	if b, _ := run(2); a == b {
		t.Error("another seed did the same")
	}
}

// fetch tells what became of one request.
func fetch(t *testing.T, f *Faulty, digest v1.Hash, whole []byte) string {
	t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://%s/v2/a/blobs/%s", f.Addr, digest))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case resp.StatusCode != http.StatusOK:
		return "refused"
	case !bytes.HasPrefix(whole, body):
		t.Error("other bytes")
	case err != nil && len(body) > 0:
		return "dropped"
	case err == nil && len(body) < len(whole):
		return "truncated"
	case err == nil:
		return "whole"
	}
	t.Errorf("%d bytes, %v", len(body), err)
	return ""
}
