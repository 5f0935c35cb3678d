package images

import (
	"context"
	"fmt"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// Busybox and the others are the images that the project's own tests use. They are served under registry.k8s.io.
const (
	Busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	Web     = "registry.k8s.io/e2e-test-images/nginx:1.14-2"
	Users   = "gcr.io/k8s-staging-cri-tools/test-image-predefined-group:latest"
	Demo    = "registry.k8s.io/gantry/demo:1"
)

// Benchmarks are the references of the images that are there when Serve is called with bench.
func Benchmarks() []string {
	var refs []string
	for _, b := range benchmarks {
		refs = append(refs, Hosts[0]+"/"+b.ref)
	}
	return refs
}

// benchmarks are the images that pulls are timed with: one layer of 256 MiB, ten of 25 MiB, 40,000 small files.
var benchmarks = []struct {
	ref                string
	layers, files, kib int
	compression        Compression
}{
	{"bench/one-layer:1", 1, 4000, 64, Gzip},
	{"bench/ten-layers:1", 10, 400, 64, Gzip},
	{"bench/small-files:1", 2, 20000, 2, Gzip},
	{"bench/one-layer-zstd:1", 1, 4000, 64, Zstd},
	{"bench/ten-layers-zstd:1", 10, 400, 64, Zstd},
	{"bench/small-files-zstd:1", 2, 20000, 2, Zstd},
}

// builder keeps the layers that images share.
type builder struct {
	guest   []byte
	base    v1.Layer // busybox
	servers v1.Layer // the guest program under the names of nginx, httpd and pause
	seed    uint64
}

func newBuilder(ctx context.Context) (*builder, error) {
	files, err := busyboxFiles(ctx)
	if err != nil {
		return nil, err
	}
	base, err := newLayer(files...)
	if err != nil {
		return nil, err
	}
	guest, err := guestProgram(ctx)
	if err != nil {
		return nil, err
	}
	servers, err := newLayer(program("nginx", guest), hardlink("httpd", "nginx"), hardlink("pause", "nginx"))
	if err != nil {
		return nil, err
	}
	return &builder{guest: guest, base: base, servers: servers}, nil
}

// recipe is an image of the catalogue: what lies above the busybox layer, and its config.
type recipe struct {
	ref     string // without the registry's host
	user    string
	cmd     []string
	files   []file
	server  bool // with the servers' layer
	scratch bool // without busybox
}

// recipes lists the images of critest 1.36, of the project's tests and of the demo.
func (b *builder) recipes() []recipe {
	web := func(ref, program string, args ...string) recipe {
		return recipe{ref: ref, cmd: append([]string{program, "web"}, args...), server: true}
	}
	const e2e, staging = "e2e-test-images/", "k8s-staging-cri-tools/"
	list := []recipe{
		{ref: e2e + "busybox:1.29-2"},
		{ref: e2e + "nonewprivs:1.3", cmd: []string{"/nnp", "euid"}, files: []file{setuid("nnp", b.guest)}},
		{ref: staging + "test-image-user-uid:latest", user: "1002"},
		{ref: staging + "test-image-user-username:latest", user: "www-data"},
		{ref: staging + "test-image-user-uid-group:latest", user: "1003:1004"},
		{ref: staging + "test-image-user-username-group:latest", user: "www-data:1004"},
		{ref: staging + "test-image-predefined-group:latest", user: "1000", files: []file{
			text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home/default-user:/bin/sh\n"),
			text("etc/group", "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")}},
		{ref: "gantry/demo:1", cmd: []string{"httpd", "-f", "-v", "-p", "8080", "-h", "/www"}, files: []file{
			dir("www/", 0o755), text("www/index.html", "<h1>Hello from a Gantry pod</h1>\n")}},
	}
	list = append(list,
		web(e2e+"nginx:1.14-2", "/nginx", "80", "nginx: master process"),
		web(e2e+"httpd:2.4.39-4", "/httpd", "80"),
		web(staging+"hostnet-nginx-"+runtime.GOARCH+":latest", "/nginx", "12003"))
	for _, tag := range []string{"3.9", "3.10"} {
		list = append(list, recipe{ref: "pause:" + tag, user: "65535:65535", cmd: []string{"/pause", "pause"}, server: true, scratch: true,
			files: []file{text("version", tag)}})
	}
	for _, name := range []string{"1", "2", "3", "latest", "digest"} {
		list = append(list, recipe{ref: staging + "test-image-" + name + ":latest", files: []file{text("name", name)}})
	}
	for _, tag := range []string{"1", "2", "3"} {
		list = append(list, recipe{ref: staging + "test-image-tags:" + tag, files: []file{text("name", "tags")}})
	}
	for _, tag := range []string{"test", "all"} {
		list = append(list, recipe{ref: staging + "test-image-tag:" + tag, files: []file{text("name", tag)}})
	}
	return list
}

func (b *builder) image(r recipe) (v1.Image, error) {
	var layers []v1.Layer
	if !r.scratch {
		layers = append(layers, b.base)
	}
	if r.server {
		layers = append(layers, b.servers)
	}
	if len(r.files) > 0 {
		l, err := newLayer(r.files...)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	cmd := r.cmd
	if cmd == nil {
		cmd = []string{"sh"}
	}
	return newImage(r.user, cmd, layers...)
}

// bench makes an image of bulk layers only.
func (b *builder) bench(layers, files, kib int, c Compression) (v1.Image, error) {
	var ls []v1.Layer
	for range layers {
		b.seed++
		l, err := bulkLayer(b.seed, files, kib<<10, c)
		if err != nil {
			return nil, err
		}
		ls = append(ls, l)
	}
	return OCI(ls...)
}

func newImage(user string, cmd []string, layers ...v1.Layer) (v1.Image, error) {
	return withLayers(empty.Image, user, cmd, layers...)
}

func withLayers(base v1.Image, user string, cmd []string, layers ...v1.Layer) (v1.Image, error) {
	img, err := mutate.AppendLayers(base, layers...)
	if err != nil {
		return nil, fmt.Errorf("appending layers: %w", err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.Architecture, cf.OS = runtime.GOARCH, "linux"
	cf.Config.User, cf.Config.Cmd = user, cmd
	cf.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	return mutate.ConfigFile(img, cf)
}
