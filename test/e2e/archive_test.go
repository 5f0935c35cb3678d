package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

const (
	offline    = "registry.invalid/air/gapped:1" // no pull of it can succeed
	busyboxBin = "/bin/busybox"                  // of busybox-static, which the test images are made of too
)

// offlineNode is a node that reaches no registry.
func offlineNode(t *testing.T, flags ...string) *node {
	t.Helper()
	return &node{Instance: harness.New(t, harness.Config{Flags: flags}), t: t}
}

// shellImage is busybox and a file of the given bytes that cannot be compressed.
func shellImage(t *testing.T, ballast int) v1.Image {
	t.Helper()
	busybox, err := os.ReadFile(busyboxBin)
	if err != nil {
		t.Fatalf("%v (hack/install-deps.sh installs busybox-static)", err)
	}
	noise := make([]byte, ballast)
	_, _ = rand.Read(noise)
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range []struct {
		hdr  tar.Header
		body []byte
	}{
		{tar.Header{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755}, nil},
		{tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, Size: int64(len(busybox))}, busybox},
		{tar.Header{Typeflag: tar.TypeLink, Name: "bin/sh", Linkname: "bin/busybox"}, nil},
		{tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/cat", Linkname: "busybox"}, nil},
		{tar.Header{Typeflag: tar.TypeReg, Name: "noise", Mode: 0o600, Size: int64(len(noise))}, noise},
	} {
		if err := tw.WriteHeader(&f.hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := images.TarLayer(buf.Bytes(), images.Gzip)
	if err != nil {
		t.Fatal(err)
	}
	img, err := images.OCI(l)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// dockerArchive writes what `docker save` does.
func dockerArchive(t *testing.T, ref string, img v1.Image) string {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	return path
}

// image runs gantry image and returns what it prints to both streams.
func (n *node) imageVerb(stdin io.Reader, args ...string) (stdout, stderr string, err error) {
	n.t.Helper()
	repo, err := harness.Repository()
	if err != nil {
		n.t.Fatal(err)
	}
	args = append([]string{"image", args[0], "--socket", n.Socket}, args[1:]...)
	cmd := exec.CommandContext(n.context(), filepath.Join(repo, "bin/gantry"), args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

func (n *node) mustImage(args ...string) string {
	n.t.Helper()
	out, errOut, err := n.imageVerb(nil, args...)
	if err != nil {
		n.t.Fatalf("gantry image %q: %v\n%s%s", args, err, out, errOut)
	}
	return out
}

// runsFrom runs a container of an image that no registry has.
func (n *node) runsFrom(pod, image string) {
	n.t.Helper()
	p := n.runPod(pod, hostNetwork)
	out, code := p.output("c", "cat /proc/self/comm", func(c *runtimeapi.ContainerConfig) { c.Image.Image = image })
	if code != 0 || out != "cat\n" {
		n.t.Errorf("a container of %s: %q, exit code %d", image, out, code)
	}
}

func (n *node) imageLeftovers() []string {
	n.t.Helper()
	var left []string
	for _, dir := range []string{"layers", "tmp", "trash"} {
		entries, err := os.ReadDir(filepath.Join(n.Dir, "root/images", dir))
		if err != nil {
			n.t.Fatal(err)
		}
		for _, e := range entries {
			left = append(left, dir+"/"+e.Name())
		}
	}
	return left
}

// Without a registry: load from a file and from standard input, run, save,
// remove, load what was saved, prune.
func TestArchives(t *testing.T) {
	n := offlineNode(t)
	img := shellImage(t, 3<<20)
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	file := dockerArchive(t, offline, img)
	if got, want := n.mustImage("load", file), "loaded "+id.String()+" "+offline+"\n"; got != want {
		t.Errorf("load prints %q, want %q", got, want)
	}
	n.runsFrom("from-file", offline)
	saved := filepath.Join(t.TempDir(), "saved.tar")
	_, told, err := n.imageVerb(nil, "save", offline, "-o", saved)
	if err != nil || !strings.Contains(told, "keep_layer_blobs") {
		t.Fatalf("save: %v, tells %q", err, told)
	}
	if got := n.mustImage("rm", offline); got != "removed "+id.String()+"\n" {
		t.Errorf("rm prints %q", got)
	}
	if _, told, err := n.imageVerb(nil, "rm", offline); err == nil || !strings.Contains(told, offline) {
		t.Errorf("rm of an image that is not there: %v, %q", err, told)
	}

	body, err := os.ReadFile(saved)
	if err != nil {
		t.Fatal(err)
	}
	if out, told, err := n.imageVerb(bytes.NewReader(body), "load", "-"); err != nil || !strings.Contains(out, offline) {
		t.Fatalf("load from standard input: %v\n%s%s", err, out, told)
	}
	n.runsFrom("from-stdin", offline)

	var list []struct {
		ID       string
		RepoTags []string
		Pinned   bool
	}
	if err := json.Unmarshal([]byte(n.mustImage("ls", "--json")), &list); err != nil || len(list) != 1 || !slices.Equal(list[0].RepoTags, []string{offline}) {
		t.Errorf("ls --json: %+v, %v", list, err)
	}
	if got := strings.Fields(n.mustImage("ls")); !slices.Equal(got[:8], []string{"IMAGE", "TAG", "ID", "SIZE", "PINNED", "registry.invalid/air/gapped", "1", list[0].ID[7:20]}) {
		t.Errorf("ls: %q", got)
	}
	if got := n.mustImage("ls", "--quiet"); got != list[0].ID+"\n" {
		t.Errorf("ls --quiet: %q", got)
	}
}

// An OCI layout is loaded as a directory and as a tar; images in use stay when
// others are pruned.
func TestPrune(t *testing.T) {
	n := offlineNode(t)
	dir := filepath.Join(t.TempDir(), "layout")
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	img := shellImage(t, 1)
	err = path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": offline}))
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	n.mustImage("load", dir)
	if got := n.image(offline).GetRepoDigests(); !slices.Equal(got, []string{"registry.invalid/air/gapped@" + digest.String()}) {
		t.Errorf("digests %q", got)
	}
	n.mustImage("load", dockerArchive(t, "registry.invalid/unused:1", shellImage(t, 2)))
	n.mustImage("load", dockerArchive(t, "registry.invalid/mounted:1", shellImage(t, 3)))
	p := n.runPod("pod", hostNetwork)
	p.run("c", forever, func(c *runtimeapi.ContainerConfig) {
		c.Image.Image = offline
		c.Mounts = append(c.Mounts, volume("/volume", n.image("registry.invalid/mounted:1").GetId(), ""))
	})
	if got := n.mustImage("prune", "--dry-run"); !strings.HasPrefix(got, "would remove registry.invalid/unused:1 (") || n.image("registry.invalid/unused:1") == nil {
		t.Errorf("prune --dry-run: %q", got)
	}
	if got := n.mustImage("prune"); !strings.HasPrefix(got, "removed registry.invalid/unused:1 (") || n.image("registry.invalid/unused:1") != nil || n.image(offline) == nil || n.image("registry.invalid/mounted:1") == nil {
		t.Errorf("prune: %q, images: %s", got, n.mustImage("ls"))
	}
}

func TestImagePull(t *testing.T) {
	n := newNode(t)
	if got, want := n.mustImage("pull", images.Demo), n.image(images.Demo).GetId()+"\n"; got != want {
		t.Errorf("pull prints %q, want %q", got, want)
	}
	if _, told, err := n.imageVerb(nil, "pull", images.Demo+"-not-there"); err == nil || !strings.Contains(told, "demo:1-not-there") {
		t.Errorf("pull of what is not there: %v, %q", err, told)
	}
	if got := n.mustImage("pulls"); !strings.HasPrefix(got, "IMAGE") {
		t.Errorf("pulls: %q", got)
	}
}

// halfSent is an archive whose second half comes when the test says so.
type halfSent struct {
	first  []byte
	sent   chan struct{} // closed when the first half was read
	resume chan struct{}
}

func (h *halfSent) Read(p []byte) (int, error) {
	if len(h.first) > 0 {
		n := copy(p, h.first)
		h.first = h.first[n:]
		return n, nil
	}
	select {
	case <-h.sent:
	default:
		close(h.sent)
	}
	<-h.resume
	return 0, io.EOF
}

// sendHalf begins a load that never gets its second half; gone ends its client
// without a word.
func (n *node) sendHalf(archive string) (gone func()) {
	n.t.Helper()
	body, err := os.ReadFile(archive)
	if err != nil {
		n.t.Fatal(err)
	}
	half := &halfSent{first: body[:len(body)/2], sent: make(chan struct{}), resume: make(chan struct{})}
	repo, err := harness.Repository()
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), filepath.Join(repo, "bin/gantry"), "image", "load", "--socket", n.Socket, "-")
	cmd.Stdin = half
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	<-half.sent
	n.eventually("the daemon has half an archive", func() bool { return n.spooled() > int64(len(body))/4 })
	return func() {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		close(half.resume)
		_ = cmd.Wait()
	}
}

// spooled is how much the daemon has in files that have no name.
func (n *node) spooled() (total int64) {
	dir := filepath.Join("/proc", strconv.Itoa(n.PID()), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		target, err := os.Readlink(path)
		if err != nil || !strings.Contains(target, n.Dir) || !strings.HasSuffix(target, " (deleted)") {
			continue
		}
		if info, err := os.Stat(path); err == nil {
			total += info.Size()
		}
	}
	return total
}

// A client that is killed in the middle of a load leaves nothing in the daemon,
// a daemon that is killed nothing on disk.
func TestLoadInterrupted(t *testing.T) {
	n := offlineNode(t)
	file := dockerArchive(t, offline, shellImage(t, 24<<20))
	gone := n.sendHalf(file)
	gone()
	n.eventually("the daemon gives up what the client has begun", func() bool { return n.spooled() == 0 && len(n.imageLeftovers()) == 0 })

	gone = n.sendHalf(file)
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	gone()
	if err := n.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.eventually("nothing is left of the load", func() bool { return n.spooled() == 0 && len(n.imageLeftovers()) == 0 })
	n.mustImage("load", file)
	n.runsFrom("pod", offline)
}

// A daemon that is told to end does so although a client still sends.
func TestStopWhileLoading(t *testing.T) {
	n := offlineNode(t)
	gone := n.sendHalf(dockerArchive(t, offline, shellImage(t, 24<<20)))
	defer gone()
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := n.imageLeftovers(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// Archives in the preload directory are there after the start, which does not
// wait for them; a damaged one does no harm.
func TestPreload(t *testing.T) {
	n := offlineNode(t)
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(n.Dir, "root/preload")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	body, err := os.ReadFile(dockerArchive(t, offline, shellImage(t, 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"a-broken.tar": body[:len(body)/2], "b.tar": body} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.eventually("the image is preloaded", func() bool { return n.image(offline) != nil })
	n.runsFrom("pod", offline)
	if log := n.LogTail(1000); !strings.Contains(log, "a-broken.tar") {
		t.Error("the log does not name the broken archive")
	}
	if err := os.RemoveAll(dir); err != nil { // the audit knows nothing of it
		t.Fatal(err)
	}
}

// Kept blobs come out of the archive as they went in.
func TestArchiveKeepsBlobs(t *testing.T) {
	n := offlineNode(t)
	conf := filepath.Join(n.Dir, "config.toml.d")
	if err := os.Mkdir(conf, 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(conf)
	if err := os.WriteFile(filepath.Join(conf, "keep.toml"), []byte("[images]\nkeep_layer_blobs = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.mustImage("load", dockerArchive(t, offline, shellImage(t, 1<<20)))
	before := n.image(offline)
	saved := filepath.Join(t.TempDir(), "saved.tar")
	if told := n.mustImage("save", "-o", saved, offline); told != "" {
		t.Errorf("save says %q", told)
	}
	n.mustImage("rm", offline)
	n.mustImage("load", saved)
	if after := n.image(offline); after.GetId() != before.GetId() {
		t.Errorf("image %s comes back as %s", before.GetId(), after.GetId())
	}
}

// The client says in a person's words that there is no daemon.
func TestImageVerbWithoutDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := harness.Gantry(ctx, "image", "ls", "--socket", path)
	if err == nil || !strings.Contains(out, "no gantry answers on "+path) {
		t.Errorf("%v: %s", err, out)
	}
}
