package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ggcrregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/gantry-cri/gantry/cri/transfer"
)

// slowRegistry gives half of every large blob and the rest when it is let go.
type slowRegistry struct {
	*httptest.Server
	handler http.Handler
	letGo   chan struct{}

	mu    sync.Mutex
	blobs map[string]int // GETs by path
}

func newSlowRegistry(t *testing.T) *slowRegistry {
	t.Helper()
	quiet := log.New(io.Discard, "", 0)
	r := &slowRegistry{handler: ggcrregistry.New(ggcrregistry.Logger(quiet)), letGo: make(chan struct{}), blobs: make(map[string]int)}
	r.Server = httptest.NewUnstartedServer(r)
	r.Server.Config.ErrorLog = quiet
	r.Server.Start()
	t.Cleanup(r.Server.Close)
	return r
}

func (r *slowRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
		r.mu.Lock()
		r.blobs[req.URL.Path]++
		r.mu.Unlock()
		w = &halved{ResponseWriter: w, ctx: req.Context(), letGo: r.letGo}
	}
	r.handler.ServeHTTP(w, req)
}

// halved stops after the first MiB.
type halved struct {
	http.ResponseWriter
	ctx   context.Context
	letGo chan struct{}
	n     int
}

func (h *halved) Write(b []byte) (int, error) {
	if h.n < 1<<20 && h.n+len(b) >= 1<<20 {
		first := 1<<20 - h.n
		if n, err := h.ResponseWriter.Write(b[:first]); err != nil {
			return n, err
		}
		h.ResponseWriter.(http.Flusher).Flush()
		select {
		case <-h.letGo:
		case <-h.ctx.Done():
			return first, h.ctx.Err()
		}
		h.n += len(b)
		n, err := h.ResponseWriter.Write(b[first:])
		return first + n, err
	}
	h.n += len(b)
	return h.ResponseWriter.Write(b)
}

// push stores an image of one layer.
func (r *slowRegistry) push(t *testing.T, img v1.Image, names ...string) (refs []string) {
	t.Helper()
	put := func(method, path, kind string, body []byte) {
		t.Helper()
		req := httptest.NewRequest(method, path, bytes.NewReader(body))
		req.Header.Set("Content-Type", kind)
		w := httptest.NewRecorder()
		if r.handler.ServeHTTP(w, req); w.Code >= 300 {
			t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
		}
	}
	must := func(body []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	rc, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	blobs := [][]byte{must(img.RawConfigFile()), must(io.ReadAll(rc))}
	for _, name := range names {
		repo, tag, _ := strings.Cut(name, ":")
		for _, body := range blobs {
			put(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+digest.FromBytes(body).String(), "application/octet-stream", body)
		}
		kind, err := img.MediaType()
		put(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, string(kind), must(must(img.RawManifest()), err))
		refs = append(refs, strings.TrimPrefix(r.URL, "http://")+"/"+name)
	}
	return refs
}

func (n *node) pulls() []transfer.Pull {
	n.t.Helper()
	c, err := transfer.Dial(n.Socket)
	if err != nil {
		n.t.Fatal(err)
	}
	defer c.Close()
	pulls, err := c.Pulls(n.context())
	if err != nil {
		n.t.Fatal(err)
	}
	return pulls
}

func (n *node) tryPull(image string) (*runtimeapi.PullImageResponse, error) {
	return n.Image.PullImage(n.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
}

// until polls; a test that waits in vain fails.
func (n *node) until(what string, is func() bool) {
	n.t.Helper()
	for range 1200 { // a minute
		if is() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	n.t.Fatalf("waited in vain until %s", what)
}

// A pull that takes long is seen, with how far it is, and says so in the log;
// however many ask for its image, under whatever names, each blob is sent once.
func TestPullProgress(t *testing.T) {
	n := offlineNode(t)
	reg := newSlowRegistry(t)
	refs := reg.push(t, shellImage(t, 3<<20), "slow/app:v1", "slow/app:v2", "slow/other:v1")
	var wg sync.WaitGroup
	ids := make([]string, 3*len(refs))
	for i := range ids {
		wg.Go(func() {
			resp, err := n.tryPull(refs[i%len(refs)])
			if err != nil {
				t.Errorf("pull of %s: %v", refs[i%len(refs)], err)
			}
			ids[i] = resp.GetImageRef()
		})
	}
	n.until("all names stand in the middle of their layer", func() bool {
		seen := make(map[string]bool)
		for _, p := range n.pulls() {
			if p.Layers == 1 && p.LayersDone == 0 && p.BytesDone == 1<<20 && p.Bytes > 3<<20 {
				seen[p.Image] = true
			}
		}
		return len(seen) == len(refs)
	})
	n.until("each says so in the log", func() bool {
		tail := n.LogTail(1000)
		for _, ref := range refs {
			if !strings.Contains(tail, fmt.Sprintf(`image=%q layers="0/1" bytes=1048576`, ref)) {
				return false
			}
		}
		return true
	})
	close(reg.letGo)
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("pulled as %q", ids)
		}
	}
	if got := n.pulls(); len(got) != 0 {
		t.Errorf("pulls under way afterwards: %v", got)
	}
	sent := 0
	for _, times := range reg.blobs {
		sent += times
	}
	if sent != 2 { // the config and the layer
		t.Errorf("blobs sent: %v", reg.blobs)
	}
	if img := n.image(refs[0]); len(img.GetRepoTags()) != 3 {
		t.Errorf("names %v", img.GetRepoTags())
	}
}

// A pull that stands still for pull_progress_timeout fails and leaves nothing;
// one that its caller gives up too.
func TestStuckPull(t *testing.T) {
	config := filepath.Join(t.TempDir(), "gantry.toml")
	if err := os.WriteFile(config, []byte("[images]\npull_progress_timeout = \"1s\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := offlineNode(t, "--config", config)
	reg := newSlowRegistry(t)
	ref := reg.push(t, shellImage(t, 3<<20), "stuck:v1")[0]
	_, err := n.tryPull(ref)
	wantReason(t, err, crierrors.ErrRegistryUnavailable, ref)

	ctx, cancel := context.WithCancel(n.context())
	go func() {
		n.until("the pull is under way", func() bool { p := n.pulls(); return len(p) == 1 && p[0].BytesDone == 1<<20 })
		cancel()
	}()
	_, err = n.Image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	wantError(t, err, codes.Canceled)
	n.until("nothing is left", func() bool { return len(n.imageLeftovers()) == 0 && len(n.pulls()) == 0 })
	if img := n.image(ref); img != nil {
		t.Errorf("the image is there: %v", img)
	}
	close(reg.letGo)
	n.pull(ref)
}

// wantReason fails the test unless the kubelet finds its word in the error of a
// pull: it strips an error of the code Unknown, and no other, of gRPC's words.
func wantReason(t *testing.T, err, reason error, names ...string) {
	t.Helper()
	wantError(t, err, codes.Unknown, names...)
	if text := status.Convert(err).Message(); !strings.HasPrefix(text, reason.Error()) {
		t.Errorf("%q does not begin with %v", text, reason)
	}
}

// An image that a verifier refuses is not pulled, and the kubelet is told why.
func TestUntrustedImage(t *testing.T) {
	dir := t.TempDir()
	programs := filepath.Join(dir, "bin")
	if err := os.Mkdir(programs, 0o755); err != nil {
		t.Fatal(err)
	}
	policy := "#!/bin/sh\ncase $2 in */signed*) exit 0;; esac\necho no signature; exit 1\n"
	if err := os.WriteFile(filepath.Join(programs, "policy"), []byte(policy), 0o755); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "gantry.toml")
	if err := os.WriteFile(config, []byte("[images.verify]\nbin_dir = \""+programs+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := offlineNode(t, "--config", config)
	reg := newSlowRegistry(t)
	close(reg.letGo)
	refs := reg.push(t, shellImage(t, 0), "signed:v1", "other:v1")
	_, err := n.tryPull(refs[1])
	wantReason(t, err, crierrors.ErrSignatureValidationFailed, refs[1], "policy", "no signature")
	if left := n.imageLeftovers(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	n.pull(refs[0])
	n.runsFrom("signed", refs[0])
}
