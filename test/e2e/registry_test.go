package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// hosts writes the hosts.toml of a registry.
func (n *node) hosts(registry, toml string) {
	n.t.Helper()
	dir := filepath.Join(n.Dir, "certs.d", registry)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// faulty starts a registry with ten images.
func faulty(t *testing.T, faults images.Faults) (*images.Faulty, []string) {
	t.Helper()
	harness.Require(t)
	f, err := images.NewFaulty(faults)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	refs, err := f.Crowd(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return f, refs
}

// entries are the names in a directory of the image store.
func (n *node) entries(dir string) []string {
	n.t.Helper()
	list, err := os.ReadDir(filepath.Join(n.Dir, "root/images", dir))
	if err != nil {
		n.t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// nothingUnderWay requires that no pull has left anything behind.
func (n *node) nothingUnderWay(layers int) {
	n.t.Helper()
	n.eventually("nothing is left of what pulls wrote", func() bool { return len(n.entries("tmp"))+len(n.entries("trash")) == 0 })
	if got := n.entries("layers"); len(got) != layers {
		n.t.Errorf("%d layers, want %d: %v", len(got), layers, got)
	}
}

// Twenty pulls of ten images at once, from a registry that drops one connection in five, delays, truncates and
// refuses: all end right, and no byte of a layer or a config is sent twice.
func TestPullsFromAFaultyRegistry(t *testing.T) {
	f, refs := faulty(t, images.Faults{Seed: 1, Drop: 5, Truncate: 10, Refuse: 8, Delay: 20 * time.Millisecond})
	n := &node{Instance: harness.New(t, harness.Config{}), t: t}
	n.hosts("faulty.example", fmt.Sprintf("server = \"http://%s\"\n", f.Addr))
	ids := make([]string, 2*len(refs))
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			ref := "faulty.example/" + refs[i/2]
			resp, err := n.Image.PullImage(n.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
			if err != nil {
				t.Errorf("pulling %s: %v", ref, err)
			}
			ids[i] = resp.GetImageRef()
		})
	}
	wg.Wait()
	seen := make(map[string]bool)
	for i, id := range ids {
		if id == "" || id != ids[i&^1] {
			t.Errorf("pull %d of %s: %q, its twin %q", i, refs[i/2], id, ids[i&^1])
		}
		seen[id] = true
	}
	if len(seen) != len(refs) {
		t.Errorf("%d images", len(seen))
	}
	var size, sent, again int64
	broken, blobs := 0, f.Blobs()
	for digest, spans := range blobs {
		twice, err := images.Overlap(spans)
		if err != nil {
			t.Errorf("blob %s: %v: %+v", digest, err, spans)
			continue
		}
		again += twice
		size += spans[0].Size
		for _, s := range spans {
			sent += s.To - s.From
			if s.Broken {
				broken++
			}
		}
	}
	// The registry breaks off with nothing on the way, so a transfer that goes on where it stopped lacks nothing.
	if sent != size || again != 0 {
		t.Errorf("%d bytes of %d were sent, %d of them again", sent, size, again)
	}
	if len(blobs) != len(refs)+13 || broken == 0 {
		t.Errorf("%d blobs were fetched, %d answers broken off", len(blobs), broken)
	}
	t.Logf("%d blobs of %d bytes, %d answers broken off, %d requests", len(blobs), size, broken, total(f))
	n.nothingUnderWay(13)
}

func total(f *images.Faulty) (sum int) {
	for _, n := range f.Requests() {
		sum += n
	}
	return sum
}

// A mirror that goes down in the middle of the pulls: the registry goes on where it stopped.
func TestMirrorGoesDown(t *testing.T) {
	origin, refs := faulty(t, images.Faults{})
	mirror, _ := faulty(t, images.Faults{Seed: 3, Drop: 3, Refuse: 2})
	n := &node{Instance: harness.New(t, harness.Config{}), t: t}
	n.hosts("mirrored.example", fmt.Sprintf("server = \"http://%s\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"http://%s\"]\n", origin.Addr, mirror.Addr))
	for _, ref := range refs {
		n.pull("mirrored.example/" + ref)
		if got := n.image("mirrored.example/" + ref).GetRepoTags(); len(got) != 1 || got[0] != "mirrored.example/"+ref {
			t.Errorf("tags %v", got)
		}
	}
	if total(mirror) == 0 || total(origin) == 0 {
		t.Errorf("the mirror was asked %d times, the registry %d times", total(mirror), total(origin))
	}
	resumed := false
	for digest, spans := range origin.Blobs() {
		if at := mirror.Blobs()[digest]; spans[0].From > 0 && len(at) > 0 && at[len(at)-1].To == spans[0].From {
			resumed = true
		}
	}
	if !resumed {
		t.Error("no transfer went on at the registry where the mirror broke off")
	}
	n.nothingUnderWay(13)
}

// A pull whose caller gives up in the middle of its layers leaves nothing that the next one would trip over.
func TestCancelledPull(t *testing.T) {
	f, refs := faulty(t, images.Faults{})
	reached := make(chan struct{}, 64)
	stuck := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			f.ServeHTTP(w, r)
			return
		}
		f.ServeHTTP(&stuckWriter{w, r, reached}, r)
	})}
	addr := listen(t, stuck)
	n := &node{Instance: harness.New(t, harness.Config{}), t: t}
	n.hosts("stuck.example", fmt.Sprintf("server = \"http://%s\"\n", addr))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for range 3 { // the config and two layers
			<-reached
		}
		cancel()
	}()
	_, err := n.Image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "stuck.example/" + refs[0]}})
	wantError(t, err, codes.Canceled)
	n.nothingUnderWay(0)
	n.hosts("stuck.example", fmt.Sprintf("server = \"http://%s\"\n", f.Addr)) // read anew
	n.pull("stuck.example/" + refs[0])
	n.nothingUnderWay(4)
}

// stuckWriter sends a kilobyte of large answers and then nothing.
type stuckWriter struct {
	http.ResponseWriter
	r       *http.Request
	reached chan<- struct{}
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	if len(p) < 4096 {
		defer func() { w.reached <- struct{}{} }()
		return w.ResponseWriter.Write(p)
	}
	_, _ = w.ResponseWriter.Write(p[:1024])
	w.ResponseWriter.(http.Flusher).Flush()
	w.reached <- struct{}{}
	<-w.r.Context().Done()
	return 0, w.r.Context().Err()
}
