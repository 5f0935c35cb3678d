package imageservice

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"k8s.io/klog/v2"
)

// progressEvery is how often a pull that takes long says how far it is.
const progressEvery = 10 * time.Second

// Pull is an image that is on its way. Layers and Bytes are 0 until its
// manifest is known; Bytes are of blobs, as the registry has them.
type Pull struct {
	Image              string
	Started            time.Time
	Layers, LayersDone int
	Bytes, BytesDone   int64
}

// Pulls are the pulls under way, in the order of their start.
func (s *Service) Pulls() []Pull { return s.progress.all() }

// progress is what is under way, to be looked at. An image that comes under
// several names is several pulls of one transfer; a blob that several images
// wait for is read once.
type progress struct {
	mu        sync.Mutex
	pulls     []*pulling
	transfers map[string]*transfer // by image id
	reads     map[digest.Digest]*atomic.Int64

	arrived atomic.Int64  // bytes of blobs, since the last of
	enough  chan struct{} // wakes who is to know every writeBackEvery bytes
}

type pulling struct {
	image   string
	started time.Time
	id      string // of the image, once it is known
}

// transfer is the blobs of one image.
type transfer struct {
	blobs []ocispec.Descriptor
	done  []bool
}

// begin enters a pull, which logs how far it is as long as it lasts. end takes
// it out.
func (p *progress) begin(ctx context.Context, image string) (this *pulling, end func()) {
	this = &pulling{image: image, started: time.Now()}
	p.mu.Lock()
	p.pulls = append(p.pulls, this)
	p.mu.Unlock()
	stop := make(chan struct{})
	var logs sync.WaitGroup
	logs.Go(func() {
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			v := p.of(this)
			klog.FromContext(ctx).Info("Pulling image", "image", image, "layers", fmt.Sprintf("%d/%d", v.LayersDone, v.Layers),
				"bytes", v.BytesDone, "total", v.Bytes)
		}
	})
	return this, func() {
		close(stop)
		logs.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.pulls = slices.DeleteFunc(p.pulls, func(other *pulling) bool { return other == this })
	}
}

// leadsTo says which image a pull is of.
func (p *progress) leadsTo(this *pulling, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	this.id = id
}

// transfer enters the blobs of an image. done says that one is here; end takes
// them out.
func (p *progress) transfer(id string, blobs []ocispec.Descriptor) (done func(i int), end func()) {
	t := &transfer{blobs, make([]bool, len(blobs))}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.transfers == nil {
		p.transfers = make(map[string]*transfer)
	}
	p.transfers[id] = t
	done = func(i int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		t.done[i] = true
	}
	return done, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.transfers, id)
	}
}

// count counts the bytes of a blob as they are read.
func (p *progress) count(blob digest.Digest, r io.ReadCloser) io.ReadCloser {
	c := &counter{ReadCloser: r, all: p}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reads == nil {
		p.reads = make(map[digest.Digest]*atomic.Int64)
	}
	p.reads[blob] = &c.n
	c.end = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.reads[blob] == &c.n {
			delete(p.reads, blob)
		}
	}
	return c
}

type counter struct {
	io.ReadCloser
	n   atomic.Int64
	all *progress
	end func()
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.n.Add(int64(n))
	if c.all.arrived.Add(int64(n)) >= writeBackEvery {
		c.all.arrived.Store(0)
		wake(c.all.enough)
	}
	return n, err
}

func (c *counter) Close() error {
	c.end()
	return c.ReadCloser.Close()
}

func (p *progress) all() []Pull {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]Pull, 0, len(p.pulls))
	for _, this := range p.pulls {
		list = append(list, p.view(this))
	}
	return list
}

func (p *progress) of(this *pulling) Pull {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.view(this)
}

func (p *progress) view(this *pulling) Pull {
	v := Pull{Image: this.image, Started: this.started}
	t := p.transfers[this.id]
	if t == nil {
		return v
	}
	v.Layers = len(t.blobs)
	for i, b := range t.blobs {
		v.Bytes += b.Size
		switch n := p.reads[b.Digest]; {
		case t.done[i]:
			v.LayersDone++
			v.BytesDone += b.Size
		case n != nil:
			v.BytesDone += min(n.Load(), b.Size)
		}
	}
	return v
}
