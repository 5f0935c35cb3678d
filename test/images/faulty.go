package images

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Faults is how unreliable a Faulty is. A field of 0 is a fault that does not happen; of 5, one that happens to one
// request in five.
type Faults struct {
	Seed     uint64
	Drop     int           // the connection breaks in the middle of the answer's body
	Truncate int           // the body ends early, and nothing told how long it is
	Refuse   int           // 429 or 5xx, some with Retry-After
	Delay    time.Duration // before an answer, at most
}

// Faulty is a registry that does not do well. What happens to the nth request for a path is decided by the seed alone.
type Faulty struct {
	*Registry
	faults Faults
	back   http.Handler

	mu    sync.Mutex
	asked map[string]int
	blobs map[string][]*Span
}

// Span is what one answer had of a blob.
type Span struct {
	From, To, Size int64 // To is after the last byte that was sent
	Broken         bool  // by a fault
}

// NewFaulty serves an empty registry on a loopback port; Push fills it.
func NewFaulty(faults Faults) (*Faulty, error) {
	r, err := newRegistry()
	if err != nil {
		return nil, err
	}
	f := &Faulty{Registry: r, faults: faults, back: r.handler, asked: make(map[string]int), blobs: make(map[string][]*Span)}
	r.handler = f
	return f, r.listen("127.0.0.1:0")
}

// Requests is how many were made, by method and path.
func (f *Faulty) Requests() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.asked)
}

// Blobs is what was sent of each blob, by digest, in the order of the requests.
func (f *Faulty) Blobs() map[string][]Span {
	f.mu.Lock()
	defer f.mu.Unlock()
	blobs := make(map[string][]Span)
	for digest, spans := range f.blobs {
		for _, s := range spans {
			blobs[digest] = append(blobs[digest], *s)
		}
	}
	return blobs
}

// Overlap is how many bytes of a blob were sent again, after a broken answer had them, and whether each byte was sent
// at least once, and no byte twice but for that.
func Overlap(spans []Span) (again int64, err error) {
	var next int64
	broken := true // the first may begin anywhere before its first byte
	for i, s := range spans {
		switch {
		case s.From > next:
			return again, fmt.Errorf("answer %d begins at %d, and only %d bytes were sent before", i, s.From, next)
		case s.From < next && !broken:
			return again, fmt.Errorf("answer %d begins at %d, and the one before was whole to %d", i, s.From, next)
		}
		again += min(next, s.To) - min(s.From, s.To)
		next, broken = max(next, s.To), s.Broken
	}
	if len(spans) == 0 || next != spans[0].Size {
		return again, fmt.Errorf("%d bytes were sent", next)
	}
	return again, nil
}

// chance is a number that depends on the seed, the path and the number of the request.
func (f *Faulty) chance(path string, n int, what string) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s %d %s", f.faults.Seed, path, n, what)
	x := h.Sum64() // FNV's low bits are poor: mix once more
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	return x ^ x>>33
}

func (f *Faulty) happens(oneIn int, path string, n int, what string) bool {
	return oneIn > 0 && f.chance(path, n, what)%uint64(oneIn) == 0
}

// ServeHTTP hands the request to the registry, and does to the answer what the faults are.
func (f *Faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		f.back.ServeHTTP(w, r)
		return
	}
	key := r.Method + " " + r.URL.Path
	f.mu.Lock()
	n := f.asked[key]
	f.asked[key]++
	f.mu.Unlock()
	if d := f.faults.Delay; d > 0 {
		wait(r.Context(), time.Duration(f.chance(key, n, "delay")%uint64(d)))
	}
	if f.happens(f.faults.Refuse, key, n, "refuse") {
		refuse(w, f.chance(key, n, "how"))
		return
	}
	a := &answer{ResponseWriter: w, faulty: f, limit: -1, chance: f.chance(key, n, "where")}
	if r.Method == http.MethodGet {
		a.drop = f.happens(f.faults.Drop, key, n, "drop")
		a.truncate = !a.drop && f.happens(f.faults.Truncate, key, n, "truncate")
		if _, digest, ok := strings.Cut(r.URL.Path, "/blobs/"); ok {
			a.digest = digest
		}
	}
	f.back.ServeHTTP(a, r)
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func refuse(w http.ResponseWriter, chance uint64) {
	switch status := []int{429, 500, 502, 503, 504}[chance%5]; {
	case status == 429 && chance&64 == 0:
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(status)
	case status == 503 && chance&64 == 0:
		w.Header().Set("Retry-After", time.Now().UTC().Add(time.Second).Format(http.TimeFormat))
		w.WriteHeader(status)
	default:
		w.WriteHeader(status)
	}
}

// answer is one to which something may happen.
type answer struct {
	http.ResponseWriter
	faulty         *Faulty
	digest         string // of a blob
	drop, truncate bool
	chance         uint64
	limit          int64 // bytes until it happens; -1: does not
	span           *Span
}

func (a *answer) WriteHeader(status int) {
	size, err := strconv.ParseInt(a.Header().Get("Content-Length"), 10, 64)
	ok := err == nil && size > 1 && (status == http.StatusOK || status == http.StatusPartialContent)
	if ok && (a.drop || a.truncate) {
		a.limit = 1 + int64(a.chance%uint64(size-1))
	}
	if ok && a.digest != "" {
		a.span = &Span{Size: size}
		if _, err := fmt.Sscanf(a.Header().Get("Content-Range"), "bytes %d-%d/%d", &a.span.From, new(int64), &a.span.Size); err == nil {
			a.span.To = a.span.From
		}
		a.faulty.mu.Lock()
		a.faulty.blobs[a.digest] = append(a.faulty.blobs[a.digest], a.span)
		a.faulty.mu.Unlock()
	}
	if ok && a.truncate {
		a.Header().Del("Content-Length")
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	part := p
	if a.limit >= 0 {
		part = p[:min(int64(len(p)), a.limit)]
		a.limit -= int64(len(part))
	}
	n, err := a.ResponseWriter.Write(part)
	a.sent(int64(n), a.limit == 0)
	if err != nil || a.limit != 0 {
		return n, err
	}
	a.ResponseWriter.(http.Flusher).Flush() // all that is said to be sent is sent
	if a.drop {
		panic(http.ErrAbortHandler)
	}
	return len(p), nil // the rest of a truncated answer goes nowhere
}

func (a *answer) sent(n int64, broken bool) {
	if a.span == nil {
		return
	}
	a.faulty.mu.Lock()
	defer a.faulty.mu.Unlock()
	a.span.To += n
	a.span.Broken = a.span.Broken || broken
}

// Crowd fills the registry with ten images, crowd/0:1 to crowd/9:1. Each has a layer of its own and shares three.
func (f *Faulty) Crowd(ctx context.Context) ([]string, error) {
	b := &builder{}
	var shared []v1.Layer
	for seed := uint64(200); seed < 203; seed++ {
		layer, err := bulkLayer(seed, 32, 64<<10, Gzip)
		if err != nil {
			return nil, err
		}
		shared = append(shared, layer)
	}
	var refs []string
	for i := range 10 {
		img, err := b.bench(1, 16, 64<<(i%4), Gzip)
		if err != nil {
			return nil, err
		}
		if img, err = withLayers(img, "", []string{"sh"}, shared...); err != nil {
			return nil, err
		}
		ref := fmt.Sprintf("crowd/%d:1", i)
		if err := f.Push(ctx, ref, img); err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}
