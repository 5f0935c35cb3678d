package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Hosts are the registries that the images pretend to come from.
var Hosts = []string{"registry.k8s.io", "gcr.io", "k8s.gcr.io"}

// Registry serves the test images from memory until Close.
type Registry struct {
	Addr string // host:port on loopback

	server  *http.Server
	served  chan error
	handler http.Handler
	blobs   registry.BlobPutHandler
}

// Serve makes the images and serves them on listen, a loopback address whose port may be 0. With bench the
// images that pulls are timed with are there too; making those takes some twenty seconds and 2 GB of memory.
func Serve(ctx context.Context, listen string, bench bool) (*Registry, error) {
	r, err := newRegistry()
	if err != nil {
		return nil, err
	}
	b, err := newBuilder(ctx)
	if err != nil {
		return nil, fmt.Errorf("making the test images: %w", err)
	}
	if err := r.fill(ctx, b, bench); err != nil {
		return nil, err
	}
	return r, r.listen(listen)
}

// New serves an empty registry on a loopback port, for images that a test makes itself (see Push).
func New() (*Registry, error) {
	r, err := newRegistry()
	if err != nil {
		return nil, err
	}
	return r, r.listen("127.0.0.1:0")
}

func newRegistry() (*Registry, error) {
	store := registry.NewInMemoryBlobHandler()
	put, ok := store.(registry.BlobPutHandler)
	if !ok {
		return nil, errors.New("the registry's memory store does not take blobs")
	}
	return &Registry{
		handler: registry.New(registry.WithBlobHandler(store), registry.Logger(log.New(io.Discard, "", 0))),
		blobs:   put,
		served:  make(chan error, 1),
	}, nil
}

func (r *Registry) listen(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listening for the test registry: %w", err)
	}
	if !l.Addr().(*net.TCPAddr).IP.IsLoopback() {
		return errors.Join(fmt.Errorf("listening on %s: the test registry serves loopback only", address), l.Close())
	}
	r.Addr = l.Addr().String()
	r.server = &http.Server{Handler: r.handler, ReadHeaderTimeout: 10 * time.Second}
	go func() { r.served <- r.server.Serve(l) }()
	return nil
}

// Close ends the server and waits for it.
func (r *Registry) Close() error {
	err := r.server.Close()
	if e := <-r.served; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// WriteMirrors writes a hosts.toml for each of Hosts beneath folder, which sends their pulls here and nowhere else.
func (r *Registry) WriteMirrors(folder string) error {
	url := "http://" + r.Addr
	body := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", url, url)
	for _, host := range Hosts {
		d := filepath.Join(folder, host)
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(d, "hosts.toml"), []byte(body), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (r *Registry) fill(ctx context.Context, b *builder, bench bool) error {
	for _, c := range b.recipes() {
		img, err := b.image(c)
		if err == nil {
			err = r.Push(ctx, c.ref, img)
		}
		if err != nil {
			return fmt.Errorf("making image %s: %w", c.ref, err)
		}
	}
	if !bench {
		return nil
	}
	for _, c := range benchmarks {
		img, err := b.bench(c.layers, c.files, c.kib, c.compression)
		if err == nil {
			err = r.Push(ctx, c.ref, img)
		}
		if err != nil {
			return fmt.Errorf("making image %s: %w", c.ref, err)
		}
	}
	return nil
}

// Push stores the image's blobs and its manifest under ref (repository:tag, without a host). Blobs go straight into
// the memory store: a client of the registry would copy them through a connection for nothing.
func (r *Registry) Push(ctx context.Context, ref string, img v1.Image) error {
	repo, tag, _ := strings.Cut(ref, ":")
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			return err
		}
		body, err := l.Compressed()
		if err != nil {
			return err
		}
		if err := r.blobs.Put(ctx, repo, digest, body); err != nil {
			return err
		}
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	digest, err := img.ConfigName()
	if err != nil {
		return err
	}
	if err := r.blobs.Put(ctx, repo, digest, io.NopCloser(bytes.NewReader(config))); err != nil {
		return err
	}
	return r.putManifest(repo, tag, img)
}

func (r *Registry) putManifest(repo, tag string, img v1.Image) error {
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	media, err := img.MediaType()
	if err != nil {
		return err
	}
	req := httptest.NewRequest(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, bytes.NewReader(manifest))
	req.Header.Set("Content-Type", string(media))
	answer := httptest.NewRecorder()
	r.handler.ServeHTTP(answer, req)
	if answer.Code != http.StatusCreated {
		return fmt.Errorf("storing the manifest: status %d: %s", answer.Code, answer.Body)
	}
	return nil
}
