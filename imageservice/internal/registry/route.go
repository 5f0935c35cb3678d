package registry

import (
	"context"
	"io"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// route is the hosts that are left for a blob, the current first. The streams
// of one blob share it.
type route struct {
	mu    sync.Mutex
	hosts []*host
	first *host // that has given a byte of the blob
}

func (t *route) current() (h *host, last bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hosts[0], len(t.hosts) == 1
}

// gave notes a host that bytes of the blob come from.
func (t *route) gave(h *host) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.first == nil {
		t.first = h
	}
}

// leave goes on from a host to the next. It says whether there is one.
func (t *route) leave(h *host) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hosts[0] != h {
		return true
	}
	if len(t.hosts) == 1 {
		return false
	}
	t.hosts = t.hosts[1:]
	return true
}

// route begins one for a blob, without the hosts that are in doubt.
func (r *Repository) route(blob digest.Digest) (*route, error) {
	hosts, err := r.hostsFor(canPull)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if left := without(hosts, r.doubted[blob]); len(left) > 0 {
		hosts = left
	}
	return &route{hosts: hosts}, nil
}

// Doubt says that what a reader of Open gave is not the blob, for the reason
// given. The host that it came from, the first of several, is not asked for
// this blob any more and for others last. It returns whether another is left to
// Open the blob from.
func (r *Repository) Doubt(ctx context.Context, blob io.ReadCloser, reason error) bool {
	var s *stream
	switch b := blob.(type) {
	case *stream:
		s = b
	case *ranged:
		s = b.base
	default:
		return false
	}
	s.route.mu.Lock()
	h := s.route.first
	s.route.mu.Unlock()
	hosts, err := r.hostsFor(canPull)
	if h == nil || err != nil {
		return false // nothing came at all
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	d := s.desc.Digest
	known := slices.Contains(r.doubted[d], h) // the blob was read twice at once
	if !known {
		r.doubted[d] = append(r.doubted[d], h)
	}
	if len(without(hosts, r.doubted[d])) == 0 {
		return false
	}
	if !known {
		r.leave(ctx, h, reason)
	}
	return true
}

func without(hosts, gone []*host) []*host {
	return slices.DeleteFunc(slices.Clone(hosts), func(h *host) bool { return slices.Contains(gone, h) })
}
