package unpack

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/test/filetree"
	"github.com/gantry-cri/gantry/test/images"
)

// run runs a program of Debian's and fails the test with what it said.
func run(t *testing.T, stdin []byte, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v (hack/install-deps.sh installs it)", err)
		}
		t.Skipf("%v (hack/install-deps.sh installs it)", err)
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// umociLayout writes an OCI layout of the layers.
func umociLayout(t *testing.T, tars [][]byte) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	must(t, err)
	must(t, p.AppendImage(imageOf(t, tars, images.Gzip), layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "test"})))
	return dir
}

func imageOf(t *testing.T, tars [][]byte, c images.Compression) v1.Image {
	t.Helper()
	var layers []v1.Layer
	for _, body := range tars {
		l, err := images.TarLayer(body, c)
		must(t, err)
		layers = append(layers, l)
	}
	img, err := images.OCI(layers...)
	must(t, err)
	return img
}

func byUmoci(t *testing.T, tars [][]byte) filetree.Tree {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	run(t, nil, "umoci", "raw", "unpack", "--image", umociLayout(t, tars)+":test", root)
	return read(t, root)
}

func byTar(t *testing.T, tars [][]byte) filetree.Tree {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	must(t, os.Mkdir(root, 0o755))
	for _, body := range tars {
		applyTar(t, root, body)
	}
	return read(t, root)
}

// applyTar has GNU tar extract a layer over those below. What tar does not know is done around it: whiteouts, files
// that take the place of directories and the reverse, and the times of directories that the layer only passes through.
func applyTar(t *testing.T, root string, body []byte) {
	t.Helper()
	times := directoryTimes(t, root)
	headers := headersOf(t, body)
	for _, h := range headers {
		applyWhiteout(t, root, h)
	}
	listed := map[string]bool{}
	for _, h := range headers {
		name := path.Clean(h.Name)
		if strings.HasPrefix(path.Base(name), ".wh.") {
			continue
		}
		info, err := os.Lstat(filepath.Join(root, name))
		if err == nil && info.IsDir() != (h.Typeflag == tar.TypeDir) {
			must(t, os.RemoveAll(filepath.Join(root, name)))
		}
		listed[name] = true
	}
	run(t, body, "tar", "--extract", "--file=-", "--directory="+root, "--numeric-owner", "--same-owner", "--same-permissions",
		"--xattrs", "--xattrs-include=*", "--delay-directory-restore", "--exclude=.wh.*", "--warning=no-timestamp")
	for name, mtime := range times {
		if listed[name] {
			continue
		}
		if info, err := os.Lstat(filepath.Join(root, name)); err == nil && info.IsDir() {
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(root, name), []unix.Timespec{unix.NsecToTimespec(mtime.UnixNano()), unix.NsecToTimespec(mtime.UnixNano())}, 0))
		}
	}
}

func applyWhiteout(t *testing.T, root string, h *tar.Header) {
	t.Helper()
	parent := filepath.Join(root, path.Dir(path.Clean(h.Name)))
	name, ok := strings.CutPrefix(path.Base(h.Name), ".wh.")
	switch {
	case !ok:
	case name == ".wh..opq":
		entries, err := os.ReadDir(parent)
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		must(t, err)
		for _, e := range entries {
			must(t, os.RemoveAll(filepath.Join(parent, e.Name())))
		}
	default:
		must(t, os.RemoveAll(filepath.Join(parent, name)))
	}
}

func headersOf(t *testing.T, body []byte) (list []*tar.Header) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(body)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		must(t, err)
		list = append(list, h)
	}
}

func directoryTimes(t *testing.T, root string) map[string]time.Time {
	t.Helper()
	times := map[string]time.Time{}
	must(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		times[name] = info.ModTime()
		return err
	}))
	return times
}

func read(t *testing.T, dir string) filetree.Tree {
	t.Helper()
	tree, err := filetree.Read(dir)
	must(t, err)
	return tree
}

// same compares two trees but for the times of the named directories and of the root.
func same(t *testing.T, what string, got, want filetree.Tree, unlisted []string) {
	t.Helper()
	if diff := filetree.Diff(timeless(got, unlisted), timeless(want, unlisted)); len(diff) > 0 {
		more := ""
		if len(diff) > 10 {
			more = fmt.Sprintf("\nand %d more", len(diff)-10)
		}
		t.Errorf("Gantry (got) and %s (want) differ in %d files of %d:\n%s%s", what, len(diff), len(want), strings.Join(diff[:min(len(diff), 10)], "\n"), more)
	}
}

// timeless is the tree without the times of the named directories and of the root.
func timeless(tree filetree.Tree, names []string) filetree.Tree {
	tree = maps.Clone(tree)
	for _, name := range append([]string{"."}, names...) {
		if f, ok := tree[name]; ok {
			f.Mtime = ""
			tree[name] = f
		}
	}
	return tree
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
