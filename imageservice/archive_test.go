package imageservice

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
)

// variedImage has what a layer can have: it must come back from an archive.
func variedImage(t testing.TB) v1.Image {
	when := time.Unix(1_700_000_000, 123_456_789)
	own := file("etc/owned", "x")
	own.Uid, own.Gid, own.Mode, own.ModTime, own.Format = 70_000, 4_000_000, 0o4755, when, tar.FormatPAX
	own.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "\x01bin\xff", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	fifo := entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "run/fifo", Mode: 0o600}}
	null := entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}}
	return imageOf(t,
		gzipLayer(t, dir("./", 0o750), dir("etc/", 0o755), file("etc/a", "lower"), file("etc/gone", "x"), dir("old/", 0o700), file("old/f", "x"),
			dir("tmp/", 0o1777), file("linked", "content"), link("etc/same", "linked"), symlink("etc/link", "/outside/../x"), own,
			dir("run/", 0o755), fifo, dir("dev/", 0o755), null, file(strings.Repeat("long/", 40)+"name", "long")),
		zstdLayer(t, dir("etc/", 0o711), file("etc/a", "upper"), file("etc/.wh.gone", ""), dir("old/", 0o700), file("old/.wh..wh..opq", ""), file("old/g", "new")),
		// These two depend on the layers below: a directory that is not listed, a link to a file of another layer.
		plainLayer(t, file("etc/implied", "x"), link("again", "linked")),
	)
}

// rootFiles lists the merged root of an image, with all that a container sees of it.
func rootFiles(t testing.TB, s *Service, image string) []string {
	t.Helper()
	root, err := s.Mount(t.Context(), "c1", image)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Unmount(context.Background(), "c1"); err != nil {
			t.Error(err)
		}
	}()
	var list []string
	inodes := map[uint64]string{}
	err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s %o %d:%d rdev=%d", rel, st.Mode, st.Uid, st.Gid, st.Rdev)
		if rel != "." && st.Mode&unix.S_IFMT != unix.S_IFDIR { // a directory's time may be of its unpacking
			line += fmt.Sprintf(" mtime=%d.%d links=%d", st.Mtim.Sec, st.Mtim.Nsec, st.Nlink)
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if inodes[st.Ino] == "" {
				inodes[st.Ino] = rel
			}
			line += " is=" + inodes[st.Ino]
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			body, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", body)
			for _, x := range []string{"user.note", "security.capability"} {
				buf := make([]byte, 256)
				if n, err := unix.Lgetxattr(path, x, buf); err == nil {
					line += fmt.Sprintf(" %s=%q", x, buf[:n])
				}
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		list = append(list, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// load loads an archive and returns what Load says of it: "id tag,tag".
func load(t testing.TB, s *Service, r io.Reader) []string {
	t.Helper()
	var got []string
	if err := s.Load(t.Context(), r, func(id string, tags []string) { got = append(got, id+" "+strings.Join(tags, ",")) }); err != nil {
		t.Fatal(err)
	}
	return got
}

func save(t testing.TB, s *Service, compress bool, refs ...string) (archive []byte, changed []string) {
	t.Helper()
	var buf bytes.Buffer
	err := s.Save(t.Context(), &buf, refs, compress, func(id, newID string) { changed = append(changed, id+" "+newID) })
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), changed
}

// dockerArchive is what `docker save` and `crane pull` write.
func dockerArchive(t testing.TB, images map[string]v1.Image) []byte {
	t.Helper()
	refs := make(map[name.Tag]v1.Image)
	for text, img := range images {
		tag, err := name.NewTag(text)
		if err != nil {
			t.Fatal(err)
		}
		refs[tag] = img
	}
	var buf bytes.Buffer
	if err := tarball.MultiWrite(refs, &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// From the registry through an archive and back all files are the same. With
// kept blobs the image is too; without, a second time through changes nothing.
func TestSaveAndLoad(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	ref := reg.push(t, "varied", "1", variedImage(t))
	for _, c := range []struct {
		name           string
		keep, compress bool
	}{{"kept blobs", true, false}, {"plain", false, false}, {"gzip", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(t)
			cfg.KeepLayerBlobs = c.keep
			s := open(t, cfg)
			id := pull(t, s, ref)
			want, digests := rootFiles(t, s, ref), status(t, s, ref).RepoDigests
			archive, changed := save(t, s, c.compress, ref)
			if again, _ := save(t, s, c.compress, ref); !bytes.Equal(archive, again) {
				t.Error("the same image gives two archives")
			}
			remove(t, s, ref)
			loaded := load(t, s, bytes.NewReader(archive))
			img := status(t, s, ref)
			if img == nil || !slices.Equal(loaded, []string{img.Id + " " + ref}) {
				t.Fatalf("loaded %q: %v", loaded, img)
			}
			if c.keep != (img.Id == id) || c.keep != (len(changed) == 0) || !c.keep && changed[0] != id+" "+img.Id {
				t.Errorf("image %s is %s in the archive, told %q", id, img.Id, changed)
			}
			if c.keep && !slices.Equal(img.RepoDigests, digests) {
				t.Errorf("digests %q, before %q", img.RepoDigests, digests)
			}
			if got := rootFiles(t, s, ref); !slices.Equal(got, want) {
				t.Errorf("the files differ:\n%s\n\nbefore:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if !c.keep {
				if _, changed := save(t, s, c.compress, ref); len(changed) != 0 {
					t.Errorf("saved once more, its id changes again: %q", changed)
				}
			}
			// Another tool reads it as docker-archive.
			path := filepath.Join(t.TempDir(), "saved.tar")
			if err := os.WriteFile(path, archive, 0o600); err != nil {
				t.Fatal(err)
			}
			other, err := tarball.ImageFromPath(path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := other.ConfigName(); err != nil || got.String() != img.Id {
				t.Errorf("another tool sees image %s, %v", got, err)
			}
		})
	}
}

// A loaded image is the pulled one: same id, its layers not unpacked twice.
func TestLoadDockerArchive(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	img := variedImage(t)
	ref := reg.push(t, "varied", "1", img)
	second := imageOf(t, gzipLayer(t, file("only", "x")))
	s := open(t, testConfig(t))
	got := load(t, s, bytes.NewReader(dockerArchive(t, map[string]v1.Image{"docker.io/library/varied:1": img, "r.example/second:2": second})))
	if len(got) != 2 || status(t, s, "varied:1") == nil || status(t, s, "r.example/second:2") == nil {
		t.Fatalf("loaded %q", got)
	}
	loaded := status(t, s, "varied:1")
	if len(loaded.RepoDigests) != 0 {
		t.Errorf("an archive without manifests gives the digests %q", loaded.RepoDigests)
	}
	reg.reset()
	if id := pull(t, s, ref); id != loaded.Id {
		t.Errorf("pulled as %s, loaded as %s", id, loaded.Id)
	}
	if n := reg.count("GET", "/blobs/"); n != 0 {
		t.Errorf("%d blobs are fetched that were loaded", n)
	}
	remove(t, s, loaded.Id)
	remove(t, s, "r.example/second:2")
	if left := leftovers(t, s); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// An image without a name is there by its id.
func TestLoadWithoutName(t *testing.T) {
	needRoot(t)
	s := open(t, testConfig(t))
	reg := newRegistry(t)
	ref := reg.push(t, "x", "1", imageOf(t, gzipLayer(t, file("f", "x"))))
	id := pull(t, s, ref)
	byDigest := status(t, s, ref).RepoDigests[0]
	remove(t, s, ref)
	pull(t, s, byDigest)
	archive, _ := save(t, s, false, byDigest)
	remove(t, s, id)
	got := load(t, s, bytes.NewReader(archive))
	img := status(t, s, strings.Fields(got[0])[0])
	if img == nil || len(img.RepoTags)+len(img.RepoDigests) != 0 {
		t.Errorf("loaded %q: %v", got, img)
	}
}

func TestLoadLeavesNothing(t *testing.T) {
	needRoot(t)
	good := dockerArchive(t, map[string]v1.Image{"r.example/x:1": imageOf(t, gzipLayer(t, file("f", "x")))})
	s := open(t, testConfig(t))
	none := func(string, []string) { t.Error("an image is told") }
	for cut := 512; cut < len(good)-2048; cut += 1024 {
		if err := s.Load(t.Context(), bytes.NewReader(good[:cut]), none); err == nil {
			t.Errorf("%d of %d bytes are an archive", cut, len(good))
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("client is gone")
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(good[:len(good)/2])
		cancel(gone)
		_ = w.CloseWithError(gone)
	}()
	if err := s.Load(ctx, r, none); !errors.Is(err, gone) {
		t.Error(err)
	}
	if left := leftovers(t, s); len(left) != 0 || len(s.list(nil)) != 0 {
		t.Errorf("left: %q, images %v", left, s.list(nil))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Load(t.Context(), bytes.NewReader(good), none); !errdefs.IsUnavailable(err) {
		t.Errorf("after Close: %v", err)
	}
}

// A short name is that of the configured registry, as for pulls: the image is
// saved with this tag and no other.
func TestSaveByShortName(t *testing.T) {
	needRoot(t)
	img := imageOf(t, gzipLayer(t, file("f", "x")))
	cfg := testConfig(t)
	cfg.ShortNames = "r.example"
	s := open(t, cfg)
	load(t, s, bytes.NewReader(dockerArchive(t, map[string]v1.Image{"r.example/x:1": img, "r.example/x:latest": img})))
	archive, _ := save(t, s, false, "x")
	remove(t, s, "x")
	if got := load(t, s, bytes.NewReader(archive)); len(got) != 1 || !strings.HasSuffix(got[0], " r.example/x:latest") {
		t.Errorf("loaded %q", got)
	}
}

// An artifact comes back as it was: its files are its blobs, and its config is
// kept beside them.
func TestSaveAndLoadArtifact(t *testing.T) {
	needRoot(t)
	for name, config := range map[string]string{"empty config": "{}", "config of its own": `{"name":"chart"}`} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t)
			ref, id := pushArtifactOf(t, reg, config, map[string]string{"a.txt": "a", "sub/dir/b.bin": strings.Repeat("b", 100_000), "config": "a file"})
			cfg := testConfig(t)
			s := open(t, cfg)
			pull(t, s, ref)
			checkFigures(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, cfg)
			checkFigures(t, s)
			archive, changed := save(t, s, false, ref)
			remove(t, s, ref)
			if left := leftovers(t, s); len(left) != 0 || s.used != (Usage{}) {
				t.Errorf("left: %q", left)
			}
			got := load(t, s, bytes.NewReader(archive))
			if img := status(t, s, ref); len(changed) != 0 || !slices.Equal(got, []string{id + " " + ref}) || img.GetId() != id {
				t.Errorf("changed %q, loaded %q: %v", changed, got, img)
			}
			if again, _ := save(t, s, false, ref); !bytes.Equal(again, archive) {
				t.Error("the artifact gives another archive")
			}
		})
	}
}

// Of equal layers one blob is kept, which another image has in another
// compression: that is not taken for the image's own.
func TestSaveWithBlobOfAnother(t *testing.T) {
	needRoot(t)
	reg := newRegistry(t)
	// Their order in the tar is none that Save makes.
	first := reg.push(t, "first", "1", imageOf(t, gzipLayer(t, file("z", "x"), file("f", "x"))))
	second := reg.push(t, "second", "1", imageOf(t, zstdLayer(t, file("z", "x"), file("f", "x")), gzipLayer(t, file("g", "x"))))
	cfg := testConfig(t)
	cfg.KeepLayerBlobs = true
	s := open(t, cfg)
	pull(t, s, first)
	id := pull(t, s, second)
	want := rootFiles(t, s, second)
	archive, changed := save(t, s, false, first, second)
	if len(changed) != 1 || !strings.HasPrefix(changed[0], id) {
		t.Errorf("changed: %q, of image %s", changed, id)
	}
	remove(t, s, first)
	remove(t, s, second)
	if got := load(t, s, bytes.NewReader(archive)); len(got) != 2 || !slices.Equal(rootFiles(t, s, second), want) {
		t.Errorf("loaded %q", got)
	}
}
