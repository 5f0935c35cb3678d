package e2e

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

func (n *node) image(ref string) *runtimeapi.Image {
	n.t.Helper()
	resp, err := n.Image.ImageStatus(n.context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		n.t.Fatalf("status of image %s: %v", ref, err)
	}
	return resp.GetImage()
}

func (n *node) removeImage(ref string) {
	n.t.Helper()
	if _, err := n.Image.RemoveImage(n.context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		n.t.Fatalf("removing image %s: %v", ref, err)
	}
}

func TestImageLifecycle(t *testing.T) {
	n := newNode(t)
	if got := n.image(images.Demo); got != nil {
		t.Fatalf("an image that was not pulled: %v", got)
	}
	id := n.pull(images.Demo)
	img := n.image(images.Demo)
	if img.GetId() != id || !strings.HasPrefix(id, "sha256:") || img.GetSize() == 0 || !slices.Equal(img.GetRepoTags(), []string{images.Demo}) || len(img.GetRepoDigests()) != 1 {
		t.Fatalf("pulled as %s: %v", id, img)
	}
	for _, ref := range []string{id, img.GetRepoDigests()[0], strings.TrimPrefix(id, "sha256:")[:12]} {
		if got := n.image(ref); got.GetId() != id {
			t.Errorf("by %s: %v", ref, got)
		}
	}
	if got := n.pull(images.Demo); got != id {
		t.Errorf("pulled again as %s", got)
	}
	list, err := n.Image.ListImages(n.context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.GetImages()) != 2 {
		t.Errorf("listed: %v, %v", list.GetImages(), err)
	}
	list, err = n.Image.ListImages(n.context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: images.Demo}}})
	if err != nil || len(list.GetImages()) != 1 || list.GetImages()[0].GetId() != id {
		t.Errorf("listed by name: %v, %v", list.GetImages(), err)
	}
	fs, err := n.Image.ImageFsInfo(n.context(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil || len(fs.GetImageFilesystems()) != 1 || fs.GetImageFilesystems()[0].GetUsedBytes().GetValue() == 0 {
		t.Errorf("file system: %v, %v", fs, err)
	}
	n.removeImage(images.Demo)
	n.removeImage(images.Demo)
	if got := n.image(id); got != nil {
		t.Errorf("after its removal: %v", got)
	}
}

func TestPullByDigest(t *testing.T) {
	n := newNode(t)
	n.pull(images.Demo)
	byDigest := n.image(images.Demo).GetRepoDigests()[0]
	n.removeImage(images.Demo)
	id := n.pull(byDigest)
	if img := n.image(byDigest); img.GetId() != id || len(img.GetRepoTags()) != 0 || !slices.Equal(img.GetRepoDigests(), []string{byDigest}) {
		t.Errorf("pulled by %s: %v", byDigest, img)
	}
	wrong := byDigest[:len(byDigest)-64] + strings.Repeat("0", 64)
	_, err := n.Image.PullImage(n.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: wrong}})
	wantError(t, err, codes.NotFound, wrong)
}

// The files of an image are there with their owners, modes and links, and an image in use can be removed by name
// without harm to the container.
func TestImageContent(t *testing.T) {
	n := newNode(t)
	c := n.runPod("pod").run("c", forever)
	if got := c.exec("stat", "-c", "%a %h", "/tmp"); !strings.HasPrefix(got, "1777 ") {
		t.Errorf("/tmp: %q", got)
	}
	if got := strings.Fields(c.exec("stat", "-c", "%i %h", "/bin/cat", "/bin/busybox")); len(got) != 4 || got[0] != got[2] || got[1] != got[3] || got[1] == "1" {
		t.Errorf("inodes and link counts of two hard links: %v", got)
	}
	if got := c.exec("readlink", "/var/run"); got != "../run\n" {
		t.Errorf("/var/run leads to %q", got)
	}
	_, err := n.Image.RemoveImage(n.context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: images.Busybox}})
	if err != nil {
		t.Logf("removing an image in use is refused: %v", err)
	}
	if got := c.exec("sh", "-c", "ls / | wc -l"); strings.TrimSpace(got) == "0" {
		t.Error("the container has lost its files")
	}
}

// Pulls of one image at once are one download; pulls of many images at once all arrive.
func TestPullsAtOnce(t *testing.T) {
	n := newNode(t)
	refs := []string{images.Demo, images.Demo, images.Demo, images.Web, images.Users, "k8s.gcr.io/pause:3.9", "registry.k8s.io/pause:3.9"}
	ids := make([]string, len(refs))
	var wg sync.WaitGroup
	for i, ref := range refs {
		wg.Go(func() {
			resp, err := n.Image.PullImage(n.context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
			if err != nil {
				t.Errorf("pulling %s: %v", ref, err)
			}
			ids[i] = resp.GetImageRef()
		})
	}
	wg.Wait()
	if ids[0] != ids[1] || ids[1] != ids[2] || ids[5] != ids[6] || ids[0] == ids[3] {
		t.Errorf("ids %v", ids)
	}
}

// A pull whose caller gives up, from a registry that does not answer, ends in time and leaves nothing.
func TestPullDeadline(t *testing.T) {
	silent := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })}
	registry := harness.Registry(t)
	n := &node{t: t, Instance: harness.New(t, harness.Config{Registry: registry})}
	addr := listen(t, silent)
	host := filepath.Join(n.Dir, "certs.d", "silent.example")
	if err := os.MkdirAll(host, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "hosts.toml"), []byte("server = \"http://"+addr+"\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := n.Image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "silent.example/x:1"}})
	wantError(t, err, codes.DeadlineExceeded)
	n.pull(images.Demo) // nothing is held
}

// A mirror that is down is passed over for the next host.
func TestMirrorFallsBack(t *testing.T) {
	registry := harness.Registry(t)
	n := &node{t: t, Instance: harness.New(t, harness.Config{Registry: registry})}
	host := filepath.Join(n.Dir, "certs.d", "two.example")
	if err := os.MkdirAll(host, 0o755); err != nil {
		t.Fatal(err)
	}
	toml := "server = \"http://" + registry.Addr + "\"\n[host.\"http://127.0.0.1:1\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
	if err := os.WriteFile(filepath.Join(host, "hosts.toml"), []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	ref := "two.example/gantry/demo:1"
	n.pull(ref)
	if tags := n.image(ref).GetRepoTags(); !slices.Equal(tags, []string{ref}) {
		t.Errorf("tags %v, want %s: a mirror does not change an image's name", tags, ref)
	}
}
