package unpack

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/test/filetree"
	"github.com/gantry-cri/gantry/test/harness"
	"github.com/gantry-cri/gantry/test/images"
)

// parts of this machine's own root file system: links into /usr, hard links (zoneinfo), many small files.
var parts = []string{"bin", "etc", "lib", "lib64", "sbin", "usr/share/perl5", "usr/share/zoneinfo"}

func TestThisMachinesRoot(t *testing.T) {
	harness.Require(t)
	var have []string
	for _, p := range parts {
		if _, err := os.Lstat(filepath.Join("/", p)); err == nil {
			have = append(have, p)
		}
	}
	compareRoot(t, "/", have...)
}

func TestDebianRoot(t *testing.T) {
	harness.Require(t)
	root := os.Getenv("GANTRY_TEST_DEBOOTSTRAP")
	if root == "" {
		t.Skip("takes a minute and a Debian mirror: see doc.go")
	}
	compareRoot(t, root, ".")
}

// compareRoot makes an image of files and, by umoci, a second layer of changes to it. The first is compared with what
// the tools make of it, the second with the tree that umoci took the changes from.
func compareRoot(t *testing.T, root string, parts ...string) {
	t.Helper()
	g := start(t)
	first := archive(t, root, parts...)
	g.compare(t, image{large: true, unlisted: []string{"usr", "usr/share"}}, [][]byte{first})

	path := umociLayout(t, [][]byte{first})
	bundle := filepath.Join(t.TempDir(), "bundle")
	run(t, nil, "umoci", "unpack", "--image", path+":test", bundle)
	rootfs := filepath.Join(bundle, "rootfs")
	alter(t, rootfs)
	run(t, nil, "umoci", "repack", "--image", path+":altered", bundle)
	got := g.unpack(t, [][]byte{first, topLayer(t, path)}, images.Gzip)
	want := read(t, rootfs)
	// umoci compares times by the second, and does not look at directories' own: what it took for unchanged has
	// the times of the first layer.
	same(t, "the tree that umoci packed", seconds(got), seconds(want), directories(want))
}

// archive has GNU tar read the files. Those of a running machine may change meanwhile, of which tar warns.
func archive(t *testing.T, root string, parts ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "tar")
	args := append([]string{"--create", "--file=" + out, "--directory=" + root, "--numeric-owner", "--format=pax", "--sparse", "--one-file-system",
		"--pax-option=delete=atime,delete=ctime", "--xattrs", "--xattrs-include=security.capability", "--xattrs-include=user.*"}, parts...)
	text, err := exec.CommandContext(t.Context(), "tar", args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		t.Fatalf("tar: %v\n%s", err, text)
	}
	body, err := os.ReadFile(out)
	must(t, err)
	return body
}

// alter changes the tree in the ways that a layer can express.
func alter(t *testing.T, root string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(root, name) }
	must(t, os.RemoveAll(at("etc/alternatives")))
	must(t, os.Symlink("default", at("etc/alternatives")))
	must(t, os.RemoveAll(at("usr/share/perl5")))
	must(t, os.Remove(at("etc/passwd")))
	must(t, os.WriteFile(at("etc/hostname"), []byte("altered"), 0o600))
	must(t, os.Chown(at("etc/hostname"), 12345, 99999))
	must(t, os.Chmod(at("etc/group"), 0o4711))
	must(t, os.MkdirAll(at("new/deep/dir"), 0o750))
	must(t, os.WriteFile(at("new/deep/file"), bytes.Repeat([]byte("new"), 1000), 0o644))
	must(t, os.Link(at("new/deep/file"), at("new/same")))
	for _, name := range []string{"etc/alternatives", "etc/hostname", "etc/group", "new/deep/file"} { // umoci rounds others
		second := unix.Timeval{Sec: 1e9}
		must(t, unix.Lutimes(at(name), []unix.Timeval{second, second}))
	}
}

// topLayer reads the last layer that umoci wrote.
func topLayer(t *testing.T, path string) []byte {
	t.Helper()
	index, err := layout.ImageIndexFromPath(path)
	must(t, err)
	m, err := index.IndexManifest()
	must(t, err)
	for _, d := range m.Manifests {
		if d.Annotations["org.opencontainers.image.ref.name"] != "altered" {
			continue
		}
		img, err := index.Image(d.Digest)
		must(t, err)
		layers, err := img.Layers()
		must(t, err)
		if len(layers) != 2 {
			t.Fatalf("umoci made %d layers, want 2", len(layers))
		}
		r, err := layers[1].Uncompressed()
		must(t, err)
		defer r.Close()
		body, err := io.ReadAll(r)
		must(t, err)
		return body
	}
	t.Fatal("umoci made no image")
	return nil
}

func seconds(tree filetree.Tree) filetree.Tree {
	for name, f := range tree {
		f.Mtime, _, _ = strings.Cut(f.Mtime, ".")
		tree[name] = f
	}
	return tree
}

func directories(tree filetree.Tree) (names []string) {
	for name, f := range tree {
		if f.Type == "d" {
			names = append(names, name)
		}
	}
	return names
}
