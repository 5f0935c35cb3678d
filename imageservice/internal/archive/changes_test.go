package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Changes are of a directory that a container writes to.
func TestChanges(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("whiteouts are device nodes, which only root can make")
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.MkdirAll(at("d/deep"), 0o750),
		os.WriteFile(at("d/deep/f"), []byte("content"), 0o640),
		os.Link(at("d/deep/f"), at("d/linked")),
		os.Symlink("/etc/shadow", at("link")),
		os.Symlink("/etc", at("folder-link")),
		unix.Mknod(at("d/gone"), unix.S_IFCHR, 0),
		unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mkfifo(at("fifo"), 0o600),
		os.Mkdir(at("replaced"), 0o700),
		unix.Setxattr(at("replaced"), "trusted.overlay.opaque", []byte("y"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", at("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var out bytes.Buffer
	deleted, err := Changes(t.Context(), &out, root)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(deleted, []string{"/d/gone"}) {
		t.Errorf("deleted: %q", deleted)
	}
	got := map[string]byte{}
	for tr := tar.NewReader(&out); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got[hdr.Name] = hdr.Typeflag
	}
	want := map[string]byte{"d/": tar.TypeDir, "d/deep/": tar.TypeDir, "d/deep/f": tar.TypeReg, "d/linked": tar.TypeLink, "link": tar.TypeSymlink,
		"folder-link": tar.TypeSymlink, "null": tar.TypeChar, "fifo": tar.TypeFifo, "replaced/": tar.TypeDir, "replaced/" + opaque: tar.TypeReg}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestChangesWhileWritten: names are looked up anew, so what has vanished or
// become a link since its folder was read must neither fail nor be followed.
func TestChangesWhileWritten(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/etc", filepath.Join(dir, "d")); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, live := range []bool{true, false} {
		for _, name := range []string{"vanished", "d/passwd", "d/alternatives"} {
			var out bytes.Buffer
			l := newLayerWriter(t.Context(), &out, root)
			l.live = live
			if err := l.entry(name); (err == nil) != live {
				t.Errorf("%s, live %v: %v", name, live, err)
			}
			if out.Len() > 0 {
				t.Errorf("%s was written", name)
			}
		}
	}
}
